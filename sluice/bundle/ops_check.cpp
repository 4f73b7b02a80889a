#include "sluice/bundle/ops_check.h"

#include <algorithm>
#include <array>

#include "sluice/base/error.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

constexpr std::array<std::string_view, 7> kActivations = {
    "relu", "gelu", "silu", "sigmoid", "tanh", "hard_swish", "gelu_tanh"};

}  // namespace

const TensorSpec* find_tensor(const OpInput& in, const char* role) {
  const auto it = in.tensors.find(role);
  return it == in.tensors.end() ? nullptr : &it->second;
}

void require_tensor(const OpInput& in, const char* role, const Shape& expected) {
  const TensorSpec* spec = find_tensor(in, role);
  if (spec && spec->shape != expected)
    fail(Code::shape, "{} '{}': expected {}, found {}", role, printable(spec->name),
         to_string(expected), to_string(spec->shape));
}

void require_rank(const OpInput& in, size_t rank, const char* layout) {
  if (input(in, 0).size() != rank)
    fail(Code::shape, "input: expected {}, found {}", layout, to_string(input(in, 0)));
}

std::vector<int64_t> window(const OpInput& in, const char* name, int64_t fallback, int64_t least) {
  const auto values = attr_ints(in.node.attrs, name, 2, fallback);
  for (int64_t v : values)
    if (v < least || v > kMaxWindow)
      fail(Code::shape, "attribute '{}': expected {} to {}, found {}", name, least, kMaxWindow, v);
  return values;
}

int64_t slide(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t room = checked_add(size, 2 * padding, "input size") - dilation * (kernel - 1) - 1;
  if (room < 0)
    fail(Code::shape, "input of size {} with padding {} is smaller than the window of {}", size,
         padding, dilation * (kernel - 1) + 1);
  return room / stride + 1;
}

int64_t require_int(const OpInput& in, const char* name, int64_t fallback, int64_t least,
                    int64_t most) {
  const int64_t value = attr_int(in.node.attrs, name, fallback);
  if (value < least || value > most)
    fail(Code::shape, "attribute '{}': expected {} to {}, found {}", name, least, most, value);
  return value;
}

void require_activation(const OpInput& in, const char* name, const char* fallback) {
  const std::string kind = attr_string(in.node.attrs, name, fallback);
  if (std::find(kActivations.begin(), kActivations.end(), kind) == kActivations.end())
    fail(Code::unsupported,
         "attribute '{}': expected relu, gelu, gelu_tanh, silu, sigmoid, tanh or hard_swish, found "
         "'{}'",
         name, printable(kind, 40));
}

Rows elementwise_rows(const OpInput&) { return Rows::apart; }

Rows matrix_rows(const OpInput& in) {
  for (const Shape& shape : in.inputs)
    if (shape.size() < 2) return Rows::mixed;
  return Rows::apart;
}

void require_activations(const OpInput& in) {
  const std::string kind = attr_string(in.node.attrs, "activations", "f32");
  if (kind != "f32" && kind != "bf16" && kind != "i8")
    fail(Code::unsupported, "attribute 'activations': expected f32, bf16 or i8, found '{}'",
         printable(kind, 40));
}

Shape same_shape(const OpInput& in) { return input(in, 0); }
int64_t no_macs(const OpInput&, const Shape&) { return 0; }

}  // namespace sluice::bundle
