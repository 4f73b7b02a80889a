#include "sluice/data/png_codec.h"

#include <png.h>

#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstring>
#include <new>
#include <utility>

#include "sluice/base/error.h"
#include "sluice/base/shape.h"

// libpng reports errors by longjmp, which skips destructors. Therefore every function with a setjmp
// below holds no local object that has one: all state lives in Reader or Writer, outside the fence,
// and errors are thrown as exceptions only after the jump has landed.

namespace sluice::data {
namespace {

constexpr std::array<uint8_t, 8> kSignature{0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};

void ignore_warning(png_structp, png_const_charp) {}

struct Reader {
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::span<const std::byte> rest;
  char message[160] = "unknown error";
  std::vector<uint8_t> pixels;
  std::vector<png_bytep> rows;

  Reader() = default;
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }
};

template <class State>
void jump_out(png_structp png, png_const_charp text) {
  auto* state = static_cast<State*>(png_get_error_ptr(png));
  std::strncpy(state->message, text, sizeof(state->message) - 1);
  png_longjmp(png, 1);
}

void read_bytes(png_structp png, png_bytep out, size_t size) {
  auto* reader = static_cast<Reader*>(png_get_io_ptr(png));
  if (size > reader->rest.size()) {
    png_error(png, "the file ends too early");
  }
  std::memcpy(out, reader->rest.data(), size);
  reader->rest = reader->rest.subspan(size);
}

bool read_header(Reader& reader) {
  if (setjmp(png_jmpbuf(reader.png))) {
    return false;
  }
  png_set_user_limits(reader.png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // checked by ours before
  png_set_chunk_cache_max(reader.png, 64);
  png_set_chunk_malloc_max(reader.png, 8 << 20);
  png_set_read_fn(reader.png, &reader, read_bytes);
  png_read_info(reader.png, reader.info);
  png_set_expand(reader.png);    // palette, 1, 2 and 4 bits, transparency to 8-bit channels
  png_set_scale_16(reader.png);  // rounds, where strip would cut
  png_set_interlace_handling(reader.png);
  png_read_update_info(reader.png, reader.info);
  return true;
}

bool read_rows(Reader& reader) {
  if (setjmp(png_jmpbuf(reader.png))) {
    return false;
  }
  png_read_image(reader.png, reader.rows.data());
  png_read_end(reader.png, nullptr);
  return true;
}

int64_t big_endian(std::span<const std::byte> file, size_t at) {
  int64_t value = 0;
  for (size_t i = 0; i < 4; ++i) {
    value = value << 8 | std::to_integer<int64_t>(file[at + i]);
  }
  return value;
}

/// Refuses what would allocate too much, before libpng sees it.
void check_header(std::span<const std::byte> file, std::string_view what,
                  const ImageLimits& limits) {
  constexpr size_t kHeader = 8 + 4 + 4 + 13;  // signature, length, "IHDR", its fields
  if (file.size() < kHeader || std::memcmp(file.data() + 12, "IHDR", 4) != 0) {
    fail(Code::format, "{}: PNG: expected the header chunk IHDR at byte 8; the file is damaged",
         what);
  }
  const int64_t width = big_endian(file, 16), height = big_endian(file, 20);
  if (width < 1 || height < 1 || width > PNG_UINT_31_MAX || height > PNG_UINT_31_MAX) {
    fail(Code::format, "{}: PNG: byte 16: size {} x {}; expected 1 to 2^31 - 1", what, width,
         height);
  }
  if (checked_mul(width, height, what) > limits.max_pixels) {
    fail(Code::limit, "{}: PNG: {} x {} is more than the {} pixels allowed", what, width, height,
         limits.max_pixels);
  }
  const auto depth = std::to_integer<int64_t>(file[24]);
  const auto type = std::to_integer<int>(file[25]);
  const int64_t channels = type == 2 ? 3 : type == 4 ? 2 : type == 6 ? 4 : 1;
  // Deflate never gains more than 1032:1, so a small file cannot hold a huge picture.
  if (width * height / (8 * 1032) * std::min<int64_t>(depth, 16) * channels >
      static_cast<int64_t>(file.size())) {
    fail(Code::format, "{}: PNG: {} bytes cannot hold {} x {} pixels; the file is truncated", what,
         file.size(), width, height);
  }
}

uint8_t over_black(uint8_t value, uint8_t alpha) {
  return static_cast<uint8_t>((value * alpha + 127) / 255);
}

struct Writer {
  png_structp png = nullptr;
  png_infop info = nullptr;
  char message[160] = "unknown error";
  std::vector<std::byte> out;
  std::vector<png_bytep> rows;

  Writer() = default;
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;
  ~Writer() { png_destroy_write_struct(&png, &info); }
};

void write_bytes(png_structp png, png_bytep data, size_t size) {
  auto* writer = static_cast<Writer*>(png_get_io_ptr(png));
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  bool stored = true;
  try {  // an exception must not pass through libpng
    writer->out.insert(writer->out.end(), bytes, bytes + size);
  } catch (const std::bad_alloc&) {
    stored = false;
  }
  if (!stored) {
    png_error(png, "not enough memory");
  }
}

void flush_nothing(png_structp) {}

bool write_all(Writer& writer, const Image& image) {
  if (setjmp(png_jmpbuf(writer.png))) {
    return false;
  }
  png_set_write_fn(writer.png, &writer, write_bytes, flush_nothing);
  png_set_user_limits(writer.png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
  png_set_IHDR(writer.png, writer.info, static_cast<png_uint_32>(image.width),
               static_cast<png_uint_32>(image.height), 8,
               image.channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_write_info(writer.png, writer.info);
  png_write_image(writer.png, writer.rows.data());
  png_write_end(writer.png, nullptr);
  return true;
}

}  // namespace

bool is_png(std::span<const std::byte> file) {
  return file.size() >= kSignature.size() &&
         std::memcmp(file.data(), kSignature.data(), kSignature.size()) == 0;
}

Image decode_png(std::span<const std::byte> file, std::string_view what,
                 const ImageLimits& limits) {
  check_header(file, what, limits);
  Reader reader;
  reader.rest = file;
  reader.png =
      png_create_read_struct(PNG_LIBPNG_VER_STRING, &reader, jump_out<Reader>, ignore_warning);
  reader.info = reader.png == nullptr ? nullptr : png_create_info_struct(reader.png);
  if (reader.info == nullptr) {
    fail(Code::limit, "{}: PNG: not enough memory for the decoder", what);
  }
  if (!read_header(reader)) {
    fail(Code::format, "{}: PNG: {}", what, reader.message);
  }
  const auto width = static_cast<size_t>(png_get_image_width(reader.png, reader.info));
  const auto height = static_cast<size_t>(png_get_image_height(reader.png, reader.info));
  const auto channels = static_cast<size_t>(png_get_channels(reader.png, reader.info));
  const size_t row_bytes = png_get_rowbytes(reader.png, reader.info);
  if (channels < 1 || channels > 4 || row_bytes != width * channels) {
    fail(Code::format, "{}: PNG: an unexpected layout of {} channels", what, channels);
  }
  reader.pixels.resize(height * row_bytes);
  for (size_t y = 0; y < height; ++y) {
    reader.rows.push_back(reader.pixels.data() + y * row_bytes);
  }
  if (!read_rows(reader)) {
    fail(Code::format, "{}: PNG: {}", what, reader.message);
  }

  Image image;
  image.width = static_cast<int64_t>(width);
  image.height = static_cast<int64_t>(height);
  image.channels = channels <= 2 ? 1 : 3;
  image.pixels = std::move(reader.pixels);
  if (channels == 2 || channels == 4) {
    const size_t kept = channels - 1;
    for (size_t i = 0; i < width * height;
         ++i) {  // in place: the target is never ahead of the source
      const uint8_t alpha = image.pixels[i * channels + kept];
      for (size_t c = 0; c < kept; ++c) {
        image.pixels[i * kept + c] = over_black(image.pixels[i * channels + c], alpha);
      }
    }
    image.pixels.resize(width * height * kept);
  }
  return image;
}

std::vector<std::byte> encode_png(const Image& image, std::string_view what) {
  Writer writer;
  const auto row_bytes = static_cast<size_t>(image.width * image.channels);
  for (size_t y = 0; y < static_cast<size_t>(image.height); ++y) {
    // libpng's old interface wants pointers to non-const; it only reads them.
    writer.rows.push_back(const_cast<png_bytep>(image.pixels.data() + y * row_bytes));
  }
  writer.png =
      png_create_write_struct(PNG_LIBPNG_VER_STRING, &writer, jump_out<Writer>, ignore_warning);
  writer.info = writer.png == nullptr ? nullptr : png_create_info_struct(writer.png);
  if (writer.info == nullptr) {
    fail(Code::limit, "{}: PNG: not enough memory for the encoder", what);
  }
  if (!write_all(writer, image)) {
    fail(Code::limit, "{}: PNG: {}", what, writer.message);
  }
  return std::move(writer.out);
}

}  // namespace sluice::data
