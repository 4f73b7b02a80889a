#include "sluice/lab/quant/packed_weight.h"

#include <c10/core/InferenceMode.h>

#include <cstring>

namespace sluice::lab {

at::Tensor byte_tensor(std::span<const std::byte> bytes) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(bytes.size())}, at::kByte);
  std::memcpy(tensor.data_ptr(), bytes.data(), bytes.size());
  return tensor;
}

std::span<const std::byte> bytes_view(const at::Tensor& weight) {
  return {static_cast<const std::byte*>(weight.data_ptr()), static_cast<size_t>(weight.numel())};
}

at::Tensor packed_bytes(const at::Tensor& values, bundle::Format format,
                        const bundle::PackOptions& options) {
  const at::Tensor host = values.detach().to(at::kCPU, at::kFloat).contiguous();
  const std::span<const float> floats(host.data_ptr<float>(), static_cast<size_t>(host.numel()));
  return byte_tensor(bundle::pack(format, floats, host.size(0), host.size(1), options))
      .to(values.device());
}

const at::Tensor& UnpackedValues::of(const at::Tensor& weight, bundle::Format format, int64_t rows,
                                     int64_t columns) {
  const uint32_t version = weight.is_inference() ? 0 : weight._version();
  if (values_.defined() && from_ == weight.data_ptr() && version_ == version) return values_;
  const c10::InferenceMode normal(
      false);  // the values outlive this call: others may want gradients
  const at::Tensor host = weight.cpu().contiguous();
  at::Tensor result = at::empty({rows, columns});
  const bundle::PackedMatrix matrix = bundle::view_packed(format, rows, columns, bytes_view(host),
                                                          "packed weight", /*trusted=*/true);
  bundle::unpack(matrix, {result.data_ptr<float>(), static_cast<size_t>(result.numel())});
  values_ = result.to(weight.device());
  from_ = weight.data_ptr();
  version_ = version;
  return values_;
}

}  // namespace sluice::lab
