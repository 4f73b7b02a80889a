#include "sluice/data/gzip.h"

#include <zlib.h>

#include <algorithm>
#include <limits>

#include "sluice/base/error.h"

namespace sluice::data {
namespace {

class Inflater {
 public:
  explicit Inflater(std::string_view what) {
    // 15: the largest window; 16: gzip only, with its checksum and length verified.
    if (inflateInit2(&stream_, 15 + 16) != Z_OK) {
      fail(Code::limit, "{}: not enough memory to inflate it", what);
    }
  }
  ~Inflater() { inflateEnd(&stream_); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
  z_stream& stream() { return stream_; }

 private:
  z_stream stream_{};
};

}  // namespace

bool is_gzip(std::span<const std::byte> file) {
  return file.size() >= 2 && file[0] == std::byte{0x1F} && file[1] == std::byte{0x8B};
}

std::vector<uint8_t> inflate_gzip(std::span<const std::byte> file, std::string_view what,
                                  size_t max_bytes) {
  if (!is_gzip(file)) {
    fail(Code::format, "{}: expected a gzip file, found other first bytes", what);
  }
  Inflater inflater(what);
  z_stream& stream = inflater.stream();
  // The last four bytes are the inflated size if the file is honest; deflate never gains more than
  // 1032:1.
  size_t hint = 0;
  if (file.size() >= 18) {
    for (size_t i = 0; i < 4; ++i) {
      hint |= std::to_integer<size_t>(file[file.size() - 4 + i]) << (8 * i);
    }
    hint = std::min({hint, max_bytes, file.size() * 1032});
  }
  std::vector<uint8_t> result(std::max<size_t>(hint, 64) + 1);
  size_t read = 0, written = 0;
  for (;;) {
    constexpr size_t kMost = std::numeric_limits<uInt>::max();
    const size_t in = std::min(kMost, file.size() - read);
    const size_t out = std::min(kMost, result.size() - written);
    // zlib does not write through next_in.
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(file.data() + read));
    stream.avail_in = static_cast<uInt>(in);
    stream.next_out = result.data() + written;
    stream.avail_out = static_cast<uInt>(out);
    const int status = inflate(&stream, Z_NO_FLUSH);
    read += in - stream.avail_in;
    written += out - stream.avail_out;
    if (written > max_bytes) {
      fail(Code::limit, "{}: inflates to more than the {} bytes allowed", what, max_bytes);
    }
    if (status == Z_STREAM_END) {
      if (read == file.size()) {
        break;
      }
      if (!is_gzip(file.subspan(read)) || inflateReset(&stream) != Z_OK) {
        fail(Code::format, "{}: byte {}: {} bytes follow the end of the gzip data", what, read,
             file.size() - read);
      }
      continue;
    }
    if (status == Z_BUF_ERROR || status == Z_OK) {
      if (written < result.size() && read == file.size()) {
        fail(Code::format,
             "{}: truncated gzip data: {} bytes inflated, then the file ends; fetch it again", what,
             written);
      }
      if (written == result.size()) {
        result.resize(std::min(2 * result.size(), max_bytes) + 1);
      }
      continue;
    }
    if (status == Z_MEM_ERROR) {
      fail(Code::limit, "{}: not enough memory to inflate it", what);
    }
    fail(Code::format, "{}: damaged gzip data near byte {}: {}", what, read,
         stream.msg != nullptr ? stream.msg : "wrong header or checksum");
  }
  result.resize(written);
  return result;
}

}  // namespace sluice::data
