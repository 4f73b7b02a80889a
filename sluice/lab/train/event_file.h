// Curves for TensorBoard: scalars in an event file.
//
// The file is a run of TFRecords: u64 length, u32 masked CRC-32C of the length, the bytes, u32
// masked CRC-32C of the bytes; little endian. Each holds an Event of TensorFlow's event.proto,
// written by hand: wall_time (1, double), step (2, int64), file_version (3, string) or summary (5)
// with value (1) of tag (1, string) and simple_value (2, float).
#pragma once
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace sluice::lab {

/// CRC-32C (Castagnoli), as in RFC 3720.
uint32_t crc32c(std::string_view bytes);

class EventFile {
 public:
  /// A new file in `directory`, which is made. Throws Error{io}.
  explicit EventFile(const std::string& directory);
  /// Appends one number and flushes, so that TensorBoard sees it at once. Throws Error{io}.
  void scalar(std::string_view tag, int64_t step, double value);
  const std::string& path() const { return path_; }

 private:
  void record(std::string_view event);
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::string path_;
  std::unique_ptr<std::FILE, Close> file_;
};

}  // namespace sluice::lab
