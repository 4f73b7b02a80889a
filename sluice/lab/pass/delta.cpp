#include "sluice/lab/pass/delta.h"

#include <torch/types.h>

#include <cmath>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"

namespace sluice::lab {
namespace {

const std::string kApplyDelta = "pass apply-delta";

/// Where two descriptions part, as a path of keys; "" where they do not.
std::string first_difference(const Json& a, const Json& b, const std::string& path) {
  if (a == b) return "";
  if (a.is_object() && b.is_object()) {
    for (const auto& [key, value] : a.items()) {
      const std::string below = path.empty() ? key : path + "." + key;
      if (!b.contains(key)) return below;
      if (const std::string found = first_difference(value, b.at(key), below); !found.empty())
        return found;
    }
    for (const auto& [key, value] : b.items())
      if (!a.contains(key)) return path.empty() ? key : path + "." + key;
  }
  return path.empty() ? "the root" : path;
}

/// Whether nothing but deltas of the base with that digest has been applied since it was that base.
bool descends(const Json& provenance, const std::string& base) {
  for (size_t i = provenance.size(); i-- > 0;) {
    const Json& step = provenance[i];
    if (!step.is_object() || step.value("step", Json()) != "apply-delta") return false;
    const auto report = step.find("report");
    if (report != step.end() && report->is_object() && report->value("base", Json()) == base)
      return true;
  }
  return false;
}

}  // namespace

ModelWeights::ModelWeights(const Model& model) {
  for (const auto& [path, tensor] : named_state(*model.root)) {
    if (!tensor.is_floating_point()) continue;
    const at::Tensor& cpu =
        keep_.emplace_back(tensor.detach().to(at::kCPU, at::kFloat).contiguous());
    named_[path] = {cpu.sizes().vec(), {cpu.data_ptr<float>(), static_cast<size_t>(cpu.numel())}};
  }
}

bundle::SparseDelta make_delta(const Model& base, const Model& tuned,
                               const bundle::DeltaOptions& options, bundle::DeltaSummary* summary) {
  const Json a = spec_of(*base.root), b = spec_of(*tuned.root);
  if (a != b) {
    fail(Code::shape,
         "the two networks are not of the same bricks: they differ at {}. A delta is of a network "
         "and its fine-tuning",
         first_difference(a, b, ""));
  }
  const auto packed = named_state(*tuned.root);
  size_t i = 0;
  for (const auto& [path, tensor] : named_state(*base.root)) {
    const at::Tensor& other = packed[i++].second;
    if (tensor.scalar_type() == at::kByte && !tensor.equal(other)) {
      fail(Code::unsupported,
           "'{}' is packed and differs; a delta is of floats: sluice transform --pass dequantize "
           "both first",
           path);
    }
  }
  return bundle::make_delta(ModelWeights(base).named(), ModelWeights(tuned).named(), options,
                            summary);
}

Json apply_delta(Model& model, const PassInput& input) {
  json_require_known_keys(input.options, {"file", "scale", "force"}, kApplyDelta);
  const auto path = json_get<std::string>(input.options, "file", kApplyDelta);
  const auto scale = json_get_or<double>(input.options, "scale", 1.0, kApplyDelta);
  const bool force = json_get_or<bool>(input.options, "force", false, kApplyDelta);
  if (!std::isfinite(scale))
    fail(Code::config, "{}: scale {}; expected a number", kApplyDelta, scale);
  const bundle::SparseDelta delta = bundle::read_delta(path);
  std::map<std::string, at::Tensor> state;
  for (const auto& [name, tensor] : named_state(*model.root))
    if (tensor.is_floating_point()) state.emplace(name, tensor);
  for (const auto& [name, tensor] : delta.tensors) {
    const auto found = state.find(name);
    if (found == state.end()) {
      std::vector<std::string> names;
      for (const auto& [other, value] : state) names.push_back(other);
      const std::string near = nearest_name(name, names);
      fail(Code::missing, "{}: it is of another model: this one has no floats '{}'{}", path, name,
           near.empty() ? "" : fmt::format("; the nearest is '{}'", near));
    }
    if (found->second.sizes() != tensor.shape)
      fail(Code::shape, "{}: it is of another model: '{}' is {} there, {} here", path, name,
           to_string(tensor.shape), to_string(found->second.sizes().vec()));
  }
  if (!force && !descends(model.provenance, delta.base)) {
    const std::string digest = bundle::weights_digest(ModelWeights(model).named());
    if (digest != delta.base) {
      fail(Code::config,
           "{}: it is of another model: its base has the digest {}, this network {}. Give the "
           "network it was made from, or force=true to add it all the same",
           path, delta.base, digest);
    }
  }
  int64_t exact = 0;
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : delta.tensors) {
    at::Tensor target = state.at(name);
    at::Tensor values = target.to(at::kCPU, at::kFloat).contiguous().clone();
    exact += bundle::apply_delta(tensor, scale,
                                 {values.data_ptr<float>(), static_cast<size_t>(values.numel())},
                                 path + ": '" + name + "'");
    target.copy_(values);
  }
  return {{"base", delta.base},
          {"scale", scale},
          {"tensors", delta.tensors.size()},
          {"entries", delta.entries()},
          {"exact", exact}};
}

}  // namespace sluice::lab
