// Files: read-only mapping, and writing that never leaves something half-written in place of good
// data.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sluice {

/// A read-only memory map. Movable. The bytes live as long as the object (shared_ptr it where
/// needed).
class MappedFile {
 public:
  /// Throws Error{missing} when absent, Error{io} when it is a directory or cannot be mapped. Empty
  /// files are fine.
  static MappedFile open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

 private:
  MappedFile() = default;
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

/// Writes beside `path`, then renames over it in commit(). Without commit() the temporary file is
/// removed and `path` keeps what it had. Every failure (disk full included) throws Error{io} naming
/// the path and the reason.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  /// Flushes, syncs, renames.
  void commit();

 private:
  std::string path_, temporary_;
  int fd_ = -1;
};

/// Whole file as text; Error{limit} when larger than `max_bytes`.
std::string read_text_file(const std::string& path, size_t max_bytes = size_t{1} << 28);
void write_text_file(const std::string& path, std::string_view text);
void make_directories(const std::string& path);
bool file_exists(const std::string& path);

/// xxHash64 with seed 0.
uint64_t xxhash64(std::span<const std::byte> bytes);

}  // namespace sluice
