#include "sluice/lab/model/graph_model.h"

#include <cstring>

#include "sluice/base/json.h"
#include "sluice/lab/brick/graph_network.h"
#include "sluice/lab/brick/init.h"

namespace sluice::lab {

Model graph_model(const bundle::Bundle& bundle) {
  const std::string& what = bundle.path();
  Model model;
  model.task = bundle.task();
  model.tokenizer = bundle.tokenizer_json();
  model.provenance = parse_json(bundle.provenance_json(), what + ": sluice.provenance");
  if (!model.provenance.is_array())
    fail(Code::format, "{}: sluice.provenance: expected a list of steps", what);
  std::shared_ptr<GraphNetwork> root;
  try {
    const WithoutInit without_init;
    root = std::make_shared<GraphNetwork>(bundle.graph());
  } catch (const Error& error) {
    throw Error(error.code(),
                fmt::format("{}: a graph without a description of bricks; {}", what, error.what()));
  }
  model.input_shape = bundle.graph().inputs[0].shape;
  for (auto& [path, target] : named_state(*root)) {
    const bundle::TensorView& view = bundle.tensor(root->sources().at(path));
    const std::span<const float> values = view.f32();
    SLUICE_CHECK(static_cast<int64_t>(values.size()) == target.numel());
    if (!values.empty()) std::memcpy(target.data_ptr<float>(), values.data(), values.size_bytes());
  }
  model.root = root;
  return model;
}

Model load_any_model(const std::string& path) {
  const bundle::Bundle bundle = bundle::Bundle::open(path);
  return bundle.model_json().empty() ? graph_model(bundle) : load_model(bundle);
}

}  // namespace sluice::lab
