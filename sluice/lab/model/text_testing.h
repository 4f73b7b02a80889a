// A small model of text for tests.
#pragma once
#include "sluice/base/json.h"
#include "sluice/lab/model/model.h"

namespace sluice::lab::testing {

/// "decoder" or "encoder" of two layers, vocabulary 30, 12 positions; in evaluation mode.
inline Model text_model(const std::string& name = "decoder") {
  Model model = make_model(name,
                           {{"vocab", 30},
                            {"layers", 2},
                            {"width", 16},
                            {"heads", 2},
                            {"ffn", 24},
                            {"context", 12},
                            {"init_std", 0.3}},
                           3);
  model.root->eval();
  return model;
}

}  // namespace sluice::lab::testing
