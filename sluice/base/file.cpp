#include "sluice/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "sluice/base/error.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace sluice {
namespace {

std::string reason(int error) { return std::strerror(error); }

/// Closes on scope exit, so that an error in between leaks nothing.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

int open_for_reading(const std::string& path) {
  // O_NONBLOCK: opening a FIFO nobody writes to must not hang.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd >= 0) {
    return fd;
  }
  if (errno == ENOENT || errno == ENOTDIR) {
    fail(Code::missing, "{}: no such file; check the path", path);
  }
  fail(Code::io, "cannot open {}: {}", path, reason(errno));
}

std::string parent_directory(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) {
    return ".";
  }
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

MappedFile MappedFile::open(const std::string& path) {
  const Descriptor fd(open_for_reading(path));
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) {
    fail(Code::io, "cannot examine {}: {}", path, reason(errno));
  }
  if (S_ISDIR(status.st_mode)) {
    fail(Code::io, "cannot read {}: it is a directory, expected a file", path);
  }
  if (!S_ISREG(status.st_mode)) {
    fail(Code::io, "cannot map {}: it is a pipe or device, expected a regular file", path);
  }
  MappedFile file;
  file.path_ = path;
  if (status.st_size > 0) {
    const size_t size = static_cast<size_t>(status.st_size);
    void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
    if (data == MAP_FAILED) {
      fail(Code::io, "cannot map {} ({} bytes): {}", path, size, reason(errno));
    }
    file.data_ = static_cast<const std::byte*>(data);
    file.size_ = size;
  }
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) {
    ::munmap(const_cast<std::byte*>(data_), size_);
  }
}

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  if (path_.empty()) {
    fail(Code::io, "cannot write a file without a name");
  }
  mode_t mode = 0666;
  bool keep_mode = false;
  struct stat status {};
  if (::stat(path_.c_str(), &status) == 0) {
    if (S_ISDIR(status.st_mode)) {
      fail(Code::io, "cannot write {}: it is a directory; name a file inside it", path_);
    }
    if (!S_ISREG(status.st_mode)) {
      // Renaming over a device such as /dev/null would replace it.
      fail(Code::io, "cannot write {}: it is a pipe or device, expected a regular file", path_);
    }
    mode = status.st_mode & 07777;
    keep_mode = true;
    std::error_code ignored;
    if (std::filesystem::is_symlink(path_, ignored)) {  // the link stays, what it names is replaced
      const std::string target = std::filesystem::canonical(path_, ignored).string();
      if (!ignored) {
        path_ = target;
      }
    }
  } else if (path_.back() == '/') {
    fail(Code::io, "cannot write {}: it names a directory; name a file inside it", path_);
  }
  static std::atomic<unsigned> counter{0};
  for (int attempt = 0; attempt < 100 && fd_ < 0; ++attempt) {
    temporary_ = fmt::format("{}.tmp.{}.{}", path_, ::getpid(), counter++);
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ < 0 && errno != EEXIST) {
      break;
    }
  }
  if (fd_ < 0) {
    const int error = errno;
    const std::string directory = parent_directory(path_);
    if (error == ENOENT || error == ENOTDIR) {
      fail(Code::io, "cannot write {}: the directory {} does not exist; create it with mkdir -p",
           path_, directory);
    }
    fail(Code::io, "cannot write {}: {} (creating a file in {})", path_, reason(error), directory);
  }
  if (keep_mode) {
    (void)!::fchmod(fd_, mode);  // not ours to change: then the default mode has to do
  }
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) {
    ::close(fd_);
  }
  if (!temporary_.empty()) {
    ::unlink(temporary_.c_str());
  }
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  if (fd_ < 0) {
    fail(Code::state, "{}: written to after commit", path_);
  }
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::write(fd_, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n <= 0) {
      const int error = n < 0 ? errno : ENOSPC;
      fail(Code::io,
           "cannot write {}: {} ({} of {} bytes of this part written; the file keeps what it had)",
           path_, reason(error), done, bytes.size());
    }
    done += static_cast<size_t>(n);
  }
}

void AtomicFile::write(std::string_view text) {
  write(std::as_bytes(std::span(text.data(), text.size())));
}

void AtomicFile::commit() {
  if (fd_ < 0) {
    fail(Code::state, "{}: committed twice", path_);
  }
  if (::fsync(fd_) != 0 && errno != EINVAL) {
    fail(Code::io, "cannot write {}: {} (while syncing; the file keeps what it had)", path_,
         reason(errno));
  }
  if (::close(std::exchange(fd_, -1)) != 0 && errno != EINTR) {
    fail(Code::io, "cannot write {}: {} (while closing; the file keeps what it had)", path_,
         reason(errno));
  }
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
    fail(Code::io, "cannot write {}: {} (while renaming {} over it)", path_, reason(errno),
         temporary_);
  }
  temporary_.clear();
  // The rename is durable only once the directory is. Some file systems cannot sync one: they say
  // EINVAL.
  const std::string directory = parent_directory(path_);
  const Descriptor fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() >= 0 && ::fsync(fd.get()) != 0 && errno == EIO) {
    fail(Code::io, "cannot write {}: {} (while syncing the directory {})", path_, reason(errno),
         directory);
  }
}

std::string read_text_file(const std::string& path, size_t max_bytes) {
  const Descriptor fd(open_for_reading(path));
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) {
    fail(Code::io, "cannot examine {}: {}", path, reason(errno));
  }
  if (S_ISDIR(status.st_mode)) {
    fail(Code::io, "cannot read {}: it is a directory, expected a file", path);
  }
  if (S_ISFIFO(status.st_mode)) {  // <(command) in a shell: wait for its writer
    ::fcntl(fd.get(), F_SETFL, ::fcntl(fd.get(), F_GETFL) & ~O_NONBLOCK);
  }
  const auto too_large = [&] {
    fail(Code::limit, "{}: larger than the {} bytes allowed here", path, max_bytes);
  };
  if (status.st_size > 0 && static_cast<uint64_t>(status.st_size) > max_bytes) {
    too_large();
  }
  std::string text;
  size_t used = 0;
  text.resize(static_cast<size_t>(status.st_size) + 1);  // one more, to see the end without growing
  for (;;) {
    const ssize_t n = ::read(fd.get(), text.data() + used, text.size() - used);
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n < 0) {
      fail(Code::io, "cannot read {}: {}", path, reason(errno));
    }
    if (n == 0) {
      break;
    }
    used += static_cast<size_t>(n);
    if (used > max_bytes) {
      too_large();
    }
    if (used == text.size()) {
      text.resize(std::max<size_t>(4096, text.size() * 2));
    }
  }
  text.resize(used);
  return text;
}

void write_text_file(const std::string& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

void make_directories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) {
    fail(Code::io, "cannot create the directory {}: {}", path, error.message());
  }
  if (!std::filesystem::is_directory(path, error)) {
    fail(Code::io, "cannot create the directory {}: a file of that name is there", path);
  }
}

bool file_exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

uint64_t xxhash64(std::span<const std::byte> bytes) { return XXH64(bytes.data(), bytes.size(), 0); }

}  // namespace sluice
