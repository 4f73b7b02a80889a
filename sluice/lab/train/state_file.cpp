#include "sluice/lab/train/state_file.h"

#include <torch/types.h>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/bundle/safetensors.h"

namespace sluice::lab {
namespace {

using bundle::DType;
constexpr std::pair<DType, at::ScalarType> kTypes[] = {
    {DType::f32, at::kFloat},    {DType::f64, at::kDouble},   {DType::i64, at::kLong},
    {DType::i32, at::kInt},      {DType::i16, at::kShort},    {DType::i8, at::kChar},
    {DType::u8, at::kByte},      {DType::boolean, at::kBool}, {DType::f16, at::kHalf},
    {DType::bf16, at::kBFloat16}};

}  // namespace

std::map<std::string, at::Tensor> StateFile::section(const std::string& prefix) const {
  std::map<std::string, at::Tensor> out;
  for (auto it = tensors.lower_bound(prefix); it != tensors.end() && it->first.starts_with(prefix);
       ++it)
    out[it->first.substr(prefix.size())] = it->second;
  return out;
}

void StateFile::add_section(const std::string& prefix,
                            const std::map<std::string, at::Tensor>& entries) {
  for (const auto& [name, tensor] : entries) tensors[prefix + name] = tensor;
}

void write_state_file(const std::string& path, const std::string& key, const StateFile& state) {
  std::vector<at::Tensor> keep;
  std::vector<bundle::TensorView> views;
  keep.reserve(state.tensors.size());
  for (const auto& [name, tensor] : state.tensors) {
    if (!tensor.defined()) fail(Code::internal, "{}: tensor '{}' is undefined", path, name);
    const auto& cpu = keep.emplace_back(tensor.detach().to(at::kCPU).contiguous());
    const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                    [&](auto& t) { return t.second == cpu.scalar_type(); });
    if (type == std::end(kTypes))
      fail(Code::dtype, "{}: tensor '{}' has type {}, which the file cannot hold", path, name,
           c10::toString(cpu.scalar_type()));
    views.push_back({name,
                     type->first,
                     cpu.sizes().vec(),
                     {static_cast<const std::byte*>(cpu.data_ptr()), cpu.nbytes()}});
  }
  bundle::write_safetensors(path, views, {{key, state.document.dump()}});
}

StateFile read_state_file(const std::string& path, const std::string& key, const std::string& what,
                          int version) {
  const auto file = bundle::SafetensorsFile::open(path);
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end())
    fail(Code::format, "{}: metadata has no '{}': not {}", path, key, what);
  StateFile out;
  const std::string where = path + ": " + key;
  out.document = parse_json(found->second, where);
  const auto stored = json_get<int64_t>(out.document, "version", where);
  if (stored != version)
    fail(Code::unsupported, "{}: version {}, this build reads version {}", where, stored, version);
  for (const auto& view : file.tensors()) {
    const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                    [&](auto& t) { return t.first == view.dtype; });
    if (type == std::end(kTypes))
      fail(Code::dtype, "{}: tensor '{}' has type {}, which {} does not use", path, view.name,
           bundle::dtype_name(view.dtype), what);
    auto tensor = torch::empty(view.shape, type->second);
    if (!view.bytes.empty()) std::memcpy(tensor.data_ptr(), view.bytes.data(), view.bytes.size());
    out.tensors[view.name] = tensor;
  }
  return out;
}

at::Tensor json_to_tensor(const Json& json) {
  const std::string text = json.dump();
  auto tensor = torch::empty({static_cast<int64_t>(text.size())}, torch::kByte);
  std::memcpy(tensor.data_ptr(), text.data(), text.size());
  return tensor;
}

Json json_from_tensor(const at::Tensor& tensor, const std::string& what) {
  if (tensor.dim() != 1 || tensor.scalar_type() != at::kByte)
    fail(Code::format, "{}: expected a run of bytes, found {} of type {}", what,
         to_string(tensor.sizes().vec()), c10::toString(tensor.scalar_type()));
  const auto cpu = tensor.cpu().contiguous();
  return parse_json({static_cast<const char*>(cpu.data_ptr()), static_cast<size_t>(cpu.numel())},
                    what);
}

}  // namespace sluice::lab
