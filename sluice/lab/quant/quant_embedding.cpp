#include "sluice/lab/quant/quant_embedding.h"

#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/quant/quant_linear.h"

namespace sluice::lab {

QuantEmbedding::QuantEmbedding(bundle::Format format, int64_t rows, int64_t width)
    : format_(format),
      rows_(require_range(rows, 1, int64_t{1} << 24, "rows", "quant_embedding")),
      width_(require_range(width, 1, kMaxChannels, "width", "quant_embedding")) {
  require_elements({rows, width}, "weight", "quant_embedding");
  if (format == bundle::Format::f32) {
    fail(Code::config, "format of quant_embedding: f32 is what an ordinary embedding has");
  }
  weight = register_buffer("weight",
                           WithoutInit::active()
                               ? at::empty({bundle::stored_bytes(format, {rows, width})}, at::kByte)
                               : packed_bytes(at::zeros({rows, width}), format));
}

std::shared_ptr<QuantEmbedding> QuantEmbedding::pack(const Embedding& table,
                                                     bundle::Format format) {
  const WithoutInit without_init;
  auto result = std::make_shared<QuantEmbedding>(format, table.rows(), table.width());
  result->weight.set_data(packed_bytes(table.weight, format));
  result->train(table.is_training());
  return result;
}

Json QuantEmbedding::attributes() const {
  return {{"rows", rows_}, {"width", width_}, {"format", std::string(format_name(format_))}};
}

BrickPtr make_quant_embedding(const Json& attributes) {
  const AttributeReader read(attributes, "quant_embedding", {"rows", "width", "format"});
  return std::make_shared<QuantEmbedding>(
      weight_format(read.text("format"), "format of quant_embedding"), read.integer("rows"),
      read.integer("width"));
}

at::Tensor QuantEmbedding::values() const { return values_.of(weight, format_, rows_, width_); }

std::string QuantEmbedding::add_weight(bundle::Builder& builder, const std::string& path) const {
  const std::string name = join_path(path, "weight");
  const at::Tensor host = weight.cpu().contiguous();
  builder.tensor(name, format_, {rows_, width_}, bytes_view(host));
  return name;
}

std::shared_ptr<Embedding> QuantEmbedding::unpacked() const {
  const WithoutInit without_init;
  auto result = std::make_shared<Embedding>(rows_, width_);
  result->weight.set_data(values().clone());
  result->train(is_training());
  return result;
}

void QuantEmbedding::check_bytes(const std::string& what) const {
  bundle::view_packed(format_, rows_, width_, bytes_view(weight), what);
}

}  // namespace sluice::lab
