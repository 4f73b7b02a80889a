#include "sluice/lab/brick/embedding.h"

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/brick/steps.h"

namespace sluice::lab {

at::Tensor TokenTable::forward(const at::Tensor& ids, Context& context) {
  const at::Tensor rows = ids.to(at::kLong);
  at::Tensor y = at::embedding(values(), rows);
  if (context.meter != nullptr) {
    // Of the table, only the rows that were read.
    const int64_t row = weight_bytes() / std::max<int64_t>(this->rows(), 1);
    context.meter->add(context.path(), 0, rows.numel() * row + tensor_bytes(y));
  }
  return y;
}

Shape TokenTable::output_shape(const Shape& input) const {
  if (input.size() != 1) {
    fail(Code::shape, "embedding: expected token ids [T], found {}", to_string(input));
  }
  return {input[0], width()};
}

Cost TokenTable::cost(const Shape& input) const {
  output_shape(input);
  return {0, rows() * width(), weight_bytes()};
}

bundle::Value TokenTable::lower(bundle::Builder& builder, const bundle::Value& x,
                                const std::string& path) const {
  return builder.node("embedding", node_path_of(path, *this), {x}, {},
                      {{"weight", add_weight(builder, path)}});
}

Embedding::Embedding(int64_t rows, int64_t width) {
  require_range(rows, 1, int64_t{1} << 24, "rows", "embedding");  // f32 counts ids exactly
  require_range(width, 1, kMaxChannels, "width", "embedding");
  require_elements({rows, width}, "weight", "embedding");
  at::Tensor values = at::empty({rows, width});
  if (!WithoutInit::active()) values.normal_(0, 0.02);
  weight = register_parameter("weight", values);
}

Json Embedding::attributes() const { return {{"rows", rows()}, {"width", width()}}; }

BrickPtr make_embedding(const Json& attributes) {
  const AttributeReader read(attributes, "embedding", {"rows", "width"});
  return std::make_shared<Embedding>(read.integer("rows"), read.integer("width"));
}

std::string Embedding::add_weight(bundle::Builder& builder, const std::string& path) const {
  const std::string name = join_path(path, "weight");
  add_tensor(builder, name, weight);
  return name;
}

}  // namespace sluice::lab
