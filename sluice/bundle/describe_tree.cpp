#include "sluice/bundle/describe_tree.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "sluice/base/error.h"
#include "sluice/bundle/conv2d.h"
#include "sluice/bundle/ops_sparse.h"
#include "sluice/bundle/packed.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

constexpr size_t kMaxLevels = 32;  // deeper segments stay one name: the tree is walked recursively

// Builds rows by path; the look-up tables live only as long as the building.
class TreeBuilder {
 public:
  TreeBuilder() : slots_(1) {}

  Row& at(const std::string& path) {
    size_t slot = 0, begin = 0;
    for (size_t level = 1;; ++level) {
      size_t dot = level < kMaxLevels ? path.find('.', begin) : path.npos;
      const std::string name = path.substr(begin, dot == path.npos ? dot : dot - begin);
      const auto [it, fresh] = slots_[slot].children.try_emplace(name, slots_.size());
      const size_t child = it->second;
      if (fresh) {
        slots_[slot].order.push_back(child);
        slots_.emplace_back();
        slots_[child].row.name = name;
        slots_[child].row.path = path.substr(0, dot);
      }
      slot = child;
      if (dot == path.npos) return slots_[slot].row;
      begin = dot + 1;
    }
  }

  Row finish() { return finish(0); }

 private:
  struct Slot {
    Row row;
    std::unordered_map<std::string, size_t> children;
    std::vector<size_t> order;
  };

  Row finish(size_t slot) {
    Row row = std::move(slots_[slot].row);
    for (size_t child : slots_[slot].order) {
      Row below = finish(child);
      row.params += below.params;
      row.macs += below.macs;
      row.bytes += below.bytes;
      row.zeros += below.zeros;
      row.leaves += below.leaves;
      if (row.kind.empty()) row.shape = below.shape;
      for (const std::string& format : below.formats)
        if (std::find(row.formats.begin(), row.formats.end(), format) == row.formats.end())
          row.formats.push_back(format);
      row.children.push_back(std::move(below));
    }
    return row;
  }

  std::vector<Slot> slots_;
};

std::string pair_text(const std::vector<int64_t>& pair) {
  return pair[0] == pair[1] ? std::to_string(pair[0]) : fmt::format("{}x{}", pair[0], pair[1]);
}

// What a reader wants to know of a node at a glance.
std::string node_kind(const Node& node, const Graph& graph) {
  const Attributes& attrs = node.attrs;
  if (node.op == "activation") return attr_string(attrs, "kind", node.op);
  if (node.op == "threshold") {
    const auto values = threshold_values(attrs);
    return values.size() == 1
               ? fmt::format("threshold > {:.4g}", values.front())
               : fmt::format("threshold > {:.4g} .. {:.4g}", values.front(), values.back());
  }
  std::string kind = node.op;
  if (node.op == "conv2d") {
    const Shape weight = conv2d_weight_shape(node, graph.tensors.at(node.tensors.at("weight")));
    kind += fmt::format(" {}x{}", weight[2], weight[3]);
    if (const auto stride = attr_ints(attrs, "stride", 2, 1); stride != std::vector<int64_t>{1, 1})
      kind += ", stride " + pair_text(stride);
    if (const auto dilation = attr_ints(attrs, "dilation", 2, 1);
        dilation != std::vector<int64_t>{1, 1})
      kind += ", dilation " + pair_text(dilation);
    if (const int64_t groups = attr_int(attrs, "groups", 1); groups != 1)
      kind += fmt::format(", {} groups", groups);
  } else if (node.op == "max_pool2d" || node.op == "avg_pool2d") {
    const auto kernel = attr_ints(attrs, "kernel", 2, 1);
    kind += fmt::format(" {}x{}", kernel[0], kernel[1]);
    if (attrs.count("stride"))
      if (const auto stride = attr_ints(attrs, "stride", 2, 1); stride != kernel)
        kind += ", stride " + pair_text(stride);
  }
  return kind;
}

template <class Word>
int64_t count_zero_words(std::span<const std::byte> bytes, Word mask) {
  int64_t zeros = 0;
  for (size_t i = 0; i + sizeof(Word) <= bytes.size(); i += sizeof(Word)) {
    Word word;  // the file need not be aligned
    std::memcpy(&word, bytes.data() + i, sizeof(Word));
    zeros += (word & mask) == 0;
  }
  return zeros;
}

}  // namespace

int64_t count_zeros(const TensorView& tensor) {
  const std::span<const std::byte> bytes = tensor.bytes;
  switch (tensor.dtype) {
    case DType::boolean:
    case DType::u8:
    case DType::i8:
      return count_zero_words<uint8_t>(bytes, 0xFF);
    case DType::f8_e4m3:
    case DType::f8_e5m2:
      return count_zero_words<uint8_t>(bytes, 0x7F);
    case DType::u16:
    case DType::i16:
      return count_zero_words<uint16_t>(bytes, 0xFFFF);
    case DType::f16:
    case DType::bf16:
      return count_zero_words<uint16_t>(bytes, 0x7FFF);
    case DType::u32:
    case DType::i32:
      return count_zero_words<uint32_t>(bytes, ~0u);
    case DType::f32:
      return count_zero_words<uint32_t>(bytes, ~0u >> 1);
    case DType::u64:
    case DType::i64:
      return count_zero_words<uint64_t>(bytes, ~uint64_t{0});
    case DType::f64:
      return count_zero_words<uint64_t>(bytes, ~uint64_t{0} >> 1);
  }
  SLUICE_CHECK(!"every element type is above");
  return 0;
}

int64_t count_zeros(const TensorSpec& spec, const TensorView& tensor) {
  const Format format = format_from_name(spec.format).value_or(Format::f32);
  if (format == Format::f32 || format == Format::bf16) return count_zeros(tensor);
  const int64_t rows = spec.shape[spec.shape.size() - 2], columns = spec.shape.back();
  const size_t each = static_cast<size_t>(stored_bytes(format, {rows, columns}));
  std::vector<float> values(static_cast<size_t>(columns));
  int64_t zeros = 0;
  for (size_t at = 0; at < tensor.bytes.size(); at += each) {
    const PackedMatrix matrix = view_packed(format, rows, columns, tensor.bytes.subspan(at, each),
                                            "tensor '" + printable(spec.name) + "'");
    for (int64_t r = 0; r < rows; ++r) {
      unpack_row(matrix, r, values);
      zeros += std::count(values.begin(), values.end(), 0.0f);
    }
  }
  return zeros;
}

Row describe_tree(const Bundle& bundle, bool sparsity) {
  const Graph& graph = bundle.graph();
  TreeBuilder builder;
  std::map<std::string_view, int64_t> zeros;  // per parameter tensor
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const Node& node = graph.nodes[i];
    const Cost& cost = bundle.info().node_costs[i];
    Row& row = builder.at(node.path);
    row.kind = node_kind(node, graph);
    row.op = node.op;
    row.shape = bundle.info().shapes.at(node.output);
    row.params = cost.params;
    row.macs = cost.macs;
    row.bytes = cost.weight_bytes;
    row.leaves = 1;
    std::vector<std::string_view> counted;
    for (const auto& [role, name] : node.tensors) {
      const TensorSpec& spec = graph.tensors.at(name);
      const std::string& format = spec.format;
      row.tensors.push_back({role, name, format, spec.shape, stored_bytes(spec)});
      if (std::find(row.formats.begin(), row.formats.end(), format) == row.formats.end())
        row.formats.push_back(format);
      if (!sparsity || !is_parameter_role(role) ||
          std::find(counted.begin(), counted.end(), name) != counted.end())
        continue;
      counted.push_back(name);
      const auto [it, fresh] = zeros.try_emplace(name, 0);
      if (fresh) it->second = count_zeros(spec, bundle.tensor(name));
      row.zeros += it->second;
    }
  }
  Row root = builder.finish();
  root.params = bundle.info().total.params;
  root.bytes = bundle.info().total.weight_bytes;
  root.zeros = 0;
  for (const auto& [name, count] : zeros) root.zeros += count;
  return root;
}

Row describe_tree(const SafetensorsFile& file, bool sparsity) {
  TreeBuilder builder;
  for (const TensorView& tensor : file.tensors()) {
    Row& row = builder.at(tensor.name);
    row.kind = dtype_name(tensor.dtype);
    row.formats = {row.kind};
    row.shape = tensor.shape;
    row.params = tensor.elements();
    row.bytes = static_cast<int64_t>(tensor.bytes.size());
    row.zeros = sparsity ? count_zeros(tensor) : 0;
    row.leaves = 1;
  }
  return builder.finish();
}

}  // namespace sluice::bundle
