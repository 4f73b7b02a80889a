// Precompiled once and reused by lab, recipes, their tests, and the CLI's training verbs.
#pragma once
#include <fmt/format.h>
#include <torch/torch.h>

#include <nlohmann/json.hpp>
