// Precompiled once and reused by lab, recipes, their tests, and the CLI's training verbs.
//
// Not torch/torch.h: GCC instantiates what templates a precompiled header has left open in every
// file that uses it, which with all of LibTorch's modules, data loaders and serializers is 4 s of
// a file's time, and makes twice the code. What few files need (torch/optim.h) they include.
#pragma once
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <torch/cuda.h>
#include <torch/nn/module.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <nlohmann/json.hpp>
