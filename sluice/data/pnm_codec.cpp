#include "sluice/data/pnm_codec.h"

#include <fmt/format.h>

#include "sluice/base/error.h"
#include "sluice/base/shape.h"

namespace sluice::data {
namespace {

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

class Scanner {
 public:
  Scanner(std::string_view text, std::string_view what) : text_(text), what_(what) {}

  /// The next decimal number, after spaces and comments (from # to the end of the line).
  int64_t number(std::string_view name, int64_t most) {
    skip();
    const size_t begin = at_;
    int64_t value = 0;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
      value = value * 10 + (text_[at_++] - '0');
      if (value > most) {
        fail(Code::format, "{}: byte {}: {} is more than {}", what_, begin, name, most);
      }
    }
    if (at_ == begin) {
      fail(Code::format, "{}: byte {}: expected a number ({}), found {}", what_, begin, name,
           found());
    }
    if (at_ < text_.size() && !is_space(text_[at_]) && text_[at_] != '#') {
      fail(Code::format, "{}: byte {}: expected a space after {}, found {}", what_, at_, name,
           found());
    }
    return value;
  }

  /// Exactly one space separates the header from binary samples.
  void one_space() {
    if (at_ >= text_.size() || !is_space(text_[at_])) {
      fail(Code::format, "{}: byte {}: expected one space before the samples, found {}", what_, at_,
           found());
    }
    ++at_;
  }

  void advance(size_t bytes) { at_ += bytes; }
  std::string_view rest() const { return text_.substr(at_); }
  size_t at() const { return at_; }

 private:
  void skip() {
    while (at_ < text_.size()) {
      if (text_[at_] == '#') {
        const size_t end = text_.find_first_of("\r\n", at_);
        at_ = end == std::string_view::npos ? text_.size() : end;
      } else if (is_space(text_[at_])) {
        ++at_;
      } else {
        break;
      }
    }
  }
  std::string found() const {
    if (at_ >= text_.size()) {
      return "the end of the file";
    }
    return fmt::format("byte {:02x}", static_cast<unsigned char>(text_[at_]));
  }

  std::string_view text_, what_;
  size_t at_ = 0;
};

uint8_t to_byte(int64_t sample, int64_t most) {
  return static_cast<uint8_t>((sample * 255 + most / 2) / most);
}

}  // namespace

bool is_pnm(std::span<const std::byte> file) {
  if (file.size() < 3 || file[0] != std::byte{'P'}) {
    return false;
  }
  const char kind = static_cast<char>(file[1]);
  return (kind == '2' || kind == '3' || kind == '5' || kind == '6') &&
         (is_space(static_cast<char>(file[2])) || file[2] == std::byte{'#'});
}

Image decode_pnm(std::span<const std::byte> file, std::string_view what,
                 const ImageLimits& limits) {
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  const char kind = text[1];
  const bool binary = kind == '5' || kind == '6';
  Scanner scanner(text, what);
  scanner.advance(2);
  constexpr int64_t kLargest = (int64_t{1} << 31) - 1;
  Image image;
  image.channels = kind == '3' || kind == '6' ? 3 : 1;
  image.width = scanner.number("width", kLargest);
  image.height = scanner.number("height", kLargest);
  const int64_t most = scanner.number("the largest sample", 65535);
  if (image.width < 1 || image.height < 1 || most < 1) {
    fail(Code::format, "{}: size {} x {}, largest sample {}: expected numbers above 0", what,
         image.width, image.height, most);
  }
  if (checked_mul(image.width, image.height, what) > limits.max_pixels) {
    fail(Code::limit, "{}: {} x {} is more than the {} pixels allowed", what, image.width,
         image.height, limits.max_pixels);
  }
  if (binary) {
    scanner.one_space();
  }
  const auto samples = static_cast<size_t>(image.width * image.height * image.channels);
  const size_t wide = binary && most > 255 ? 2 : 1;
  // Text needs a digit and a space for each sample but the last.
  const size_t least = binary ? samples * wide : samples * 2 - 1;
  if (scanner.rest().size() < least) {
    fail(Code::format, "{}: {} x {} x {} needs at least {} bytes of samples, found {}; truncated?",
         what, image.width, image.height, image.channels, least, scanner.rest().size());
  }
  image.pixels.resize(samples);
  if (!binary) {
    for (uint8_t& pixel : image.pixels) {
      pixel = to_byte(scanner.number("a sample", most), most);
    }
    return image;
  }
  const std::string_view data = scanner.rest();
  for (size_t i = 0; i < samples; ++i) {
    int64_t sample = static_cast<unsigned char>(data[i * wide]);
    if (wide == 2) {
      sample = sample << 8 | static_cast<unsigned char>(data[i * 2 + 1]);
    }
    if (sample > most) {
      fail(Code::format, "{}: byte {}: sample {} is more than the largest, {}", what,
           scanner.at() + i * wide, sample, most);
    }
    image.pixels[i] = most == 255 ? static_cast<uint8_t>(sample) : to_byte(sample, most);
  }
  return image;
}

std::string encode_pnm(const Image& image) {
  std::string result =
      fmt::format("P{}\n{} {}\n255\n", image.channels == 1 ? 5 : 6, image.width, image.height);
  result.append(reinterpret_cast<const char*>(image.pixels.data()), image.pixels.size());
  return result;
}

}  // namespace sluice::data
