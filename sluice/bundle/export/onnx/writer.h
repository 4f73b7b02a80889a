// What the operators' exports are written with: nodes and constants with names of their own.
#pragma once
#include <set>

#include "sluice/bundle/bundle.h"
#include "sluice/bundle/export/onnx/proto.h"

namespace sluice::bundle::onnx {

class Writer {
 public:
  explicit Writer(const Bundle& model);

  const Bundle& model() const { return model_; }
  /// Of a value, per sample.
  const Shape& shape(const std::string& value) const { return model_.info().shapes.at(value); }

  /// Whether the value is the graph's input of ids, int64 in the file.
  bool is_ids(const std::string& value) const { return value == ids_; }
  /// How many rows [T, ..] a value has, for Reshape: 0, as many as there are, where T is open.
  int64_t rows(const std::string& value) const {
    return open_rows_.count(value) ? 0 : shape(value)[0];
  }

  /// Adds a node and returns the name of its output, `output` or a new one.
  std::string node(const std::string& op, const std::vector<std::string>& inputs,
                   const std::vector<Attribute>& attributes = {}, const std::string& output = "");
  std::vector<std::string> node_of(const std::string& op, const std::vector<std::string>& inputs,
                                   size_t outputs, const std::vector<Attribute>& attributes = {});
  std::string reals(const Shape& dims, const std::vector<float>& values,
                    const std::string& name = "");
  std::string integers(const std::vector<int64_t>& values);
  std::string integer(int64_t value);
  std::string number(float value) { return reals({}, {value}); }
  /// A value as [N, ..shape].
  std::string reshaped(const std::string& value, const Shape& shape,
                       const std::string& output = "");

  /// Where the nodes that follow come from.
  void begin(const Node& node);
  const Node& current() const { return *current_; }
  [[noreturn]] void refuse(const std::string& reason) const;
  std::vector<float> tensor(const std::string& role) const;  ///< f32; others are refused
  bool has(const std::string& role) const { return current_->tensors.count(role) > 0; }
  /// The tensor under its name, as it is.
  std::string stored(const std::string& role);

  Message graph(const std::vector<std::string>& outputs) const;
  size_t nodes() const { return nodes_; }
  size_t tensors() const { return names_.size(); }

 private:
  std::string fresh(const std::string& wish);

  Shape batched(const std::string& value) const;

  const Bundle& model_;
  std::string ids_;                  ///< the input that is int64; empty: none
  std::set<std::string> open_rows_;  ///< values [T, ..] whose T is open
  const Node* current_ = nullptr;
  std::set<std::string> names_;  ///< of initializers
  std::set<std::string> taken_;
  Message body_, initializers_;
  size_t nodes_ = 0, made_ = 0;
};

using ExportFunction = void (*)(Writer& to);
struct ExportEntry {
  std::string_view op;
  ExportFunction run;
};
// One source file each.
std::vector<ExportEntry> layer_exports();
std::vector<ExportEntry> array_exports();

/// Of the node that is being written.
inline const std::string& out(const Writer& to) { return to.current().output; }
inline const std::string& in(const Writer& to, size_t i = 0) { return to.current().inputs[i]; }

}  // namespace sluice::bundle::onnx
