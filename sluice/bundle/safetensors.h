// safetensors: 8 bytes header length (little endian), a JSON header, then the tensors' bytes.
// https://huggingface.co/docs/safetensors - read here with every size checked before use.
#pragma once
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "sluice/base/file.h"
#include "sluice/base/shape.h"
#include "sluice/bundle/dtype.h"

namespace sluice::bundle {

/// A named, typed, shaped, non-owning run of bytes (row-major, little endian).
struct TensorView {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::span<const std::byte> bytes;

  int64_t elements() const;
  /// The elements as T; throws Error{dtype} when dtype is not T's, Error{format} when misaligned.
  std::span<const float> f32() const;
};

struct ReadLimits {
  uint64_t max_header_bytes = 100u << 20;  ///< the format's own limit
  size_t max_tensors = 1u << 20;
  size_t max_rank = 16;
};

/// A parsed file; cheap to open (only the header is read), copies share the mapping. Views point
/// into it and live as long as any copy.
class SafetensorsFile {
 public:
  static SafetensorsFile open(const std::string& path, const ReadLimits& limits = {});
  /// Parses `bytes`, which must outlive the object; `what` names them in errors. (Fuzzing, tests.)
  static SafetensorsFile parse(std::span<const std::byte> bytes, const std::string& what,
                               const ReadLimits& limits = {});

  const std::string& path() const { return path_; }
  const std::vector<TensorView>& tensors() const { return tensors_; }  ///< in file order
  const TensorView* find(const std::string& name) const;
  /// Throws Error{missing} naming the file, the tensor and the nearest existing name.
  const TensorView& at(const std::string& name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  uint64_t file_bytes() const { return file_bytes_; }

 private:
  std::string path_;
  uint64_t file_bytes_ = 0;
  std::shared_ptr<MappedFile> file_;
  std::vector<TensorView> tensors_;
  std::map<std::string, size_t> index_;
  std::map<std::string, std::string> metadata_;
};

/// Writes aside, then renames. Tensors of 64 KB and more that fill whole pages of 4 KB come first
/// and start at a page of the file; then the others. Both go by element size, largest first, equal
/// sizes in the given order. The header is padded with spaces so that the data starts at a page,
/// where no tensor fills pages at a multiple of 64 bytes. The format allows no holes between
/// tensors, so only that and the natural alignment of each tensor's elements are guaranteed. No
/// copy of the data is made. Throws, before touching `path`, Error{shape} when a view's byte count
/// does not match its shape and Error{usage} on duplicate or impossible names.
void write_safetensors(const std::string& path, std::span<const TensorView> tensors,
                       const std::map<std::string, std::string>& metadata);
/// The same bytes in memory.
std::vector<std::byte> safetensors_bytes(std::span<const TensorView> tensors,
                                         const std::map<std::string, std::string>& metadata);

}  // namespace sluice::bundle
