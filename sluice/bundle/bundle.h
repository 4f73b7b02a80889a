// A model as a file: safetensors whose metadata holds the graph, the model description and the
// provenance.
//   sluice.version     format version, "1"
//   sluice.graph       graph.h as JSON
//   sluice.model       how lab rebuilds the bricks (opaque here), JSON, optional
//   sluice.task        what the inputs and outputs mean: {"kind": "classify", "data":
//   "fashion-mnist",
//                      "labels": [...], "mean": 0.286, "std": 0.353}, or {"kind": "generate",
//                      "stop_tokens": [2], "tokenizer": {"tensor": ..}}, JSON, optional
//   sluice.sizes       the sizes of a nested network (sizes.h), JSON, optional
//   sluice.provenance  [{"step": "train", ...}, {"step": "slice-channels", ...}], JSON, optional
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/bundle/graph.h"
#include "sluice/bundle/packed.h"
#include "sluice/bundle/rows.h"
#include "sluice/bundle/safetensors.h"
#include "sluice/bundle/sizes.h"

namespace sluice::bundle {

inline constexpr int kFormatVersion = 1;
inline constexpr size_t kMaxLabels = 65536;
inline constexpr size_t kMaxStopTokens = 4096;
inline constexpr size_t kMaxTokenizerBytes = size_t{256} << 20;
inline constexpr char kTokenizerTensor[] = "tokenizer.json";

/// What input and output mean.
struct Task {
  std::string kind;                    ///< "classify", "read" pictures; "embed" or "generate" text
  std::string data;                    ///< data set it was trained on
  std::vector<std::string> labels;     ///< names of the classes
  double mean = 0, std = 1;            ///< input = (pixel / 255 - mean) / std
  std::vector<int64_t> stop_tokens{};  ///< ids after which "generate" ends
  /// Name of the U8 tensor that holds the text of the tokenizer, and its checksum.
  std::string tokenizer{};
  std::optional<uint64_t> tokenizer_xxh64{};
};

/// An opened bundle; cheap to copy (shared).
class Bundle {
 public:
  struct Options {
    bool verify_checksums = false;
    ReadLimits limits;
  };
  /// Throws as SafetensorsFile::open and check_graph do; Error{missing} when the file has no graph
  /// (an ordinary safetensors file: use SafetensorsFile), Error{unsupported} for a newer version.
  static Bundle open(const std::string& path) { return open(path, Options{}); }
  static Bundle open(const std::string& path, const Options& options);
  static Bundle parse(std::span<const std::byte> bytes, const std::string& what,
                      const Options& options);

  const std::string& path() const;
  const Graph& graph() const;
  const GraphInfo& info() const;
  const SafetensorsFile& file() const;
  const TensorView& tensor(const std::string& name) const { return file().at(name); }
  const Task& task() const;
  /// Those a run may choose from, with name, cost and quality; empty when the file has no table.
  const std::vector<SizeEntry>& sizes() const;
  /// The text of the tokenizer (tokenizer.json), in the mapped file; "" when absent.
  std::string_view tokenizer_json() const;
  const std::string& model_json() const;       ///< "" when absent
  const std::string& provenance_json() const;  ///< "[]" when absent
  int version() const;                         ///< of the file's format
  uint64_t file_bytes() const { return file().file_bytes(); }

  /// Compares every tensor with its checksum; throws Error{format} naming the first that differs.
  /// Returns how many tensors had a checksum.
  int64_t verify() const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

/// Has the metadata key "sluice.graph".
bool is_bundle(const SafetensorsFile& file);

/// Builds a graph node by node, checking each as it comes, and writes the bundle. A call that
/// throws changes nothing.
class Builder {
 public:
  /// Error{usage} for a name that is taken ("v0", "v1", ... are the outputs of nodes).
  Value input(const std::string& name, Shape shape);
  /// Copies the bytes. Adding the same name twice with the same shape and bytes is one tensor;
  /// different: Error{usage}. `shape` is the logical one.
  void tensor(const std::string& name, DType dtype, Shape shape, std::span<const std::byte> bytes,
              const std::string& format = "f32");
  void tensor(const std::string& name, Shape shape, std::span<const float> values);
  /// As the first, without the copy: the bytes must stay until the bundle is written.
  void tensor_view(const std::string& name, DType dtype, Shape shape,
                   std::span<const std::byte> bytes, const std::string& format = "f32");
  /// Bytes as pack() makes them, one matrix after the other, for a logical shape [.., rows,
  /// columns]; codes and scales are checked.
  void tensor(const std::string& name, Format format, Shape shape,
              std::span<const std::byte> bytes);
  /// `tensors`: role -> name of a tensor already added. Returns the output value with its shape.
  Value node(const std::string& op, const std::string& path, const std::vector<Value>& inputs,
             Attributes attrs = {}, std::map<std::string, std::string> tensors = {});
  void output(const Value& value);
  /// The input is what the output, added before, was in a session's last run.
  void carry(const std::string& input, const Value& output);

  void set_model_json(std::string json) { model_json_ = std::move(json); }
  /// The tokenizer of the task comes from set_tokenizer.
  void set_task(Task task) { task_ = std::move(task); }
  /// One entry per size of the graph, which must be finished by then; checked when written.
  void set_sizes(std::vector<SizeEntry> sizes) { sizes_ = std::move(sizes); }
  /// Stores the text as the tensor "tokenizer.json" and names it in the task, which there must be.
  void set_tokenizer(std::string json) { tokenizer_ = std::move(json); }
  void set_provenance_json(std::string json) { provenance_json_ = std::move(json); }

  const Graph& graph() const { return graph_; }
  /// The bytes of a tensor that was added, as they will lie in the file. Throws Error{missing}.
  std::span<const std::byte> stored(const std::string& name) const;
  /// Gives every node the path `path`(old), every tensor the name `tensor`(old). Throws
  /// Error{usage} when two get the same.
  void rename(const std::function<std::string(const std::string&)>& path,
              const std::function<std::string(const std::string&)>& tensor);
  /// Writes the bundle with a checksum per tensor. Throws Error{numeric} naming the tensor when an
  /// f32 tensor holds NaN or infinity, Error{state} without an output.
  void write(const std::string& path) const;
  /// The bundle's bytes without a file.
  std::vector<std::byte> bytes() const;

 private:
  struct Stored {
    DType dtype;
    Shape shape;  // as in the file
    std::vector<std::byte> bytes;
    std::span<const std::byte> view;  // of what the caller keeps
    bool owned;
    std::span<const std::byte> data() const { return owned ? std::span(bytes) : view; }
  };
  Graph graph_;
  void store(const std::string& name, DType dtype, Shape shape, std::span<const std::byte> bytes,
             const std::string& format, bool copy);
  Task full_task() const;
  void check_texts() const;
  void check_finished() const;
  std::vector<TensorView> views() const;
  std::map<std::string, std::string> metadata() const;

  std::map<std::string, Shape> shapes_;
  RowSets rows_;
  std::set<std::string> paths_;
  std::map<std::string, Stored> stored_;
  std::vector<std::string> order_;  // of stored_, as added: the file's order
  Task task_;
  std::vector<SizeEntry> sizes_;
  std::string tokenizer_, model_json_, provenance_json_ = "[]";
};

}  // namespace sluice::bundle
