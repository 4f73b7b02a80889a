// What the operator families share: checks of inputs, tensors and attributes. All throw
// Error{shape} without the node's name, which check_node adds.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "sluice/bundle/ops.h"

namespace sluice::bundle {

/// Kernel, stride, padding, dilation, counts: far above use, far below overflow.
inline constexpr int64_t kMaxWindow = 1 << 20;

inline const Shape& input(const OpInput& in, size_t index) { return in.inputs[index]; }
/// nullptr when the node has no tensor of that role.
const TensorSpec* find_tensor(const OpInput& in, const char* role);
/// The tensor, where there is one, has this shape.
void require_tensor(const OpInput& in, const char* role, const Shape& expected);
/// Input 0 has this rank; `layout` is what the message calls it.
void require_rank(const OpInput& in, size_t rank, const char* layout);
/// An attribute of one or two integers, each from `least` to kMaxWindow.
std::vector<int64_t> window(const OpInput& in, const char* name, int64_t fallback, int64_t least);
/// Positions of a window along one dimension.
int64_t slide(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation);
/// An integer attribute from `least` to `most`.
int64_t require_int(const OpInput& in, const char* name, int64_t fallback, int64_t least,
                    int64_t most);
/// The attribute 'kind' (or `name`) is one of the activations of docs/formats.md.
void require_activation(const OpInput& in, const char* name, const char* fallback);

/// Rules for Operator::rows: each element by itself; the last dimension of each row (the inputs are
/// matrices).
Rows elementwise_rows(const OpInput& in);
Rows matrix_rows(const OpInput& in);
/// The attribute 'activations', what products round their input to, is f32, bf16 or i8.
void require_activations(const OpInput& in);

Shape same_shape(const OpInput& in);
int64_t no_macs(const OpInput&, const Shape&);

}  // namespace sluice::bundle
