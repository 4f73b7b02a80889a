#include "sluice/data/image.h"

#include <png.h>

#include "sluice/base/file.h"
#include "sluice/base/random.h"
#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"

namespace sluice::data {
namespace image_test {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;

Image noise_image(int64_t width, int64_t height, int64_t channels) {
  Image image{width, height, channels, {}};
  for (int64_t i = 0; i < width * height * channels; ++i) {
    image.pixels.push_back(static_cast<uint8_t>(derive_seed(1, "noise", static_cast<uint64_t>(i))));
  }
  return image;
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

Image decode(const std::string& text, const ImageLimits& limits = {}) {
  return decode_image(bytes_of(text), "t", limits);
}

/// A PNG of any kind libpng can write; `rows` in its packed layout, `setup` adds chunks. Fits these
/// tests only: errors of libpng abort.
template <class Setup>
std::string make_png(uint32_t width, uint32_t height, int depth, int type,
                     std::vector<std::string> rows, const Setup& setup,
                     int interlace = PNG_INTERLACE_NONE) {
  std::string out;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  png_set_write_fn(
      png, &out,
      [](png_structp p, png_bytep data, size_t size) {
        static_cast<std::string*>(png_get_io_ptr(p))->append(reinterpret_cast<char*>(data), size);
      },
      nullptr);
  png_set_IHDR(png, info, width, height, depth, type, interlace, 0, 0);
  setup(png, info);
  std::vector<png_bytep> pointers;
  for (std::string& row : rows) {
    pointers.push_back(reinterpret_cast<png_bytep>(row.data()));
  }
  png_set_rows(png, info, pointers.data());
  png_write_png(png, info, PNG_TRANSFORM_IDENTITY, nullptr);
  png_destroy_write_struct(&png, &info);
  return out;
}

void no_setup(png_structp, png_infop) {}

std::string png_of(const Image& image, const TempDirectory& directory) {
  write_image(directory / "x.png", image);
  return read_text_file(directory / "x.png");
}

TEST(ImageFiles, RoundTripAsPngAndPnm) {
  const TempDirectory directory;
  for (const int64_t channels : {1, 3}) {
    for (const char* name : {"a.png", "a.pgm"}) {
      const Image image = noise_image(7, 5, channels);
      write_image(directory / name, image);
      const Image back = read_image(directory / name);
      EXPECT_EQ(back.width, 7);
      EXPECT_EQ(back.height, 5);
      EXPECT_EQ(back.channels, channels);
      EXPECT_EQ(back.pixels, image.pixels);
    }
  }
  expect_error(Code::missing, "none.png", [&] { read_image(directory / "none.png"); });
}

TEST(ImageFiles, RefuseImpossibleImages) {
  const TempDirectory directory;
  expect_error(Code::shape, "3 bytes", [&] {
    write_image(directory / "a.png", Image{2, 2, 1, {1, 2, 3}});
  });
  expect_error(Code::shape, "0 x 2", [&] { write_image(directory / "a.png", Image{0, 2, 1, {}}); });
  expect_error(Code::shape, "2 channels", [&] {
    write_image(directory / "a.png", Image{1, 1, 2, {1, 2}});
  });
  expect_error(Code::io, "mkdir",
               [&] { write_image(directory / "no/a.png", noise_image(2, 2, 1)); });
}

TEST(DecodePng, ExpandsFewBitsToFullRange) {
  EXPECT_THAT(decode(make_png(4, 1, 1, PNG_COLOR_TYPE_GRAY, {"\xA0"}, no_setup)).pixels,
              ElementsAre(255, 0, 255, 0));
  EXPECT_THAT(decode(make_png(4, 1, 2, PNG_COLOR_TYPE_GRAY, {"\x1B"}, no_setup)).pixels,
              ElementsAre(0, 85, 170, 255));
  EXPECT_THAT(decode(make_png(2, 1, 4, PNG_COLOR_TYPE_GRAY, {"\x1F"}, no_setup)).pixels,
              ElementsAre(17, 255));
}

TEST(DecodePng, RoundsSixteenBits) {
  const std::string row("\x00\x00\x80\x80\xFF\xFF\x00\xFF", 8);
  EXPECT_THAT(decode(make_png(4, 1, 16, PNG_COLOR_TYPE_GRAY, {row}, no_setup)).pixels,
              ElementsAre(0, 128, 255, 1));
  const Image rgb = decode(make_png(1, 1, 16, PNG_COLOR_TYPE_RGB,
                                    {std::string("\xFF\xFF\x00\x00\x80\x80", 6)}, no_setup));
  EXPECT_EQ(rgb.channels, 3);
  EXPECT_THAT(rgb.pixels, ElementsAre(255, 0, 128));
}

TEST(DecodePng, LooksPaletteColoursUp) {
  const Image image =
      decode(make_png(3, 1, 8, PNG_COLOR_TYPE_PALETTE, {std::string("\0\1\2", 3)},
                      [](png_structp png, png_infop info) {
                        const png_color colours[] = {{1, 2, 3}, {4, 5, 6}, {200, 100, 50}};
                        png_set_PLTE(png, info, colours, 3);
                        const png_byte alpha[] = {255, 0, 128};
                        png_set_tRNS(png, info, alpha, 3, nullptr);
                      }));
  EXPECT_EQ(image.channels, 3);
  EXPECT_THAT(image.pixels, ElementsAre(1, 2, 3, 0, 0, 0, 100, 50, 25));
}

TEST(DecodePng, BlendsAlphaOverBlack) {
  const std::string grey("\xFF\xFF\xFF\x80\xFF\x00", 6);
  const Image image = decode(make_png(3, 1, 8, PNG_COLOR_TYPE_GRAY_ALPHA, {grey}, no_setup));
  EXPECT_EQ(image.channels, 1);
  EXPECT_THAT(image.pixels, ElementsAre(255, 128, 0));
  const std::string rgb("\x64\xC8\xFF\x80\x64\xC8\xFF\xFF", 8);
  EXPECT_THAT(decode(make_png(2, 1, 8, PNG_COLOR_TYPE_RGBA, {rgb}, no_setup)).pixels,
              ElementsAre(50, 100, 128, 100, 200, 255));
}

TEST(DecodePng, ReadsInterlacedPictures) {
  const Image image = noise_image(9, 11, 1);
  std::vector<std::string> rows;
  for (int y = 0; y < 11; ++y) {
    rows.emplace_back(image.pixels.begin() + y * 9, image.pixels.begin() + (y + 1) * 9);
  }
  EXPECT_EQ(
      decode(make_png(9, 11, 8, PNG_COLOR_TYPE_GRAY, rows, no_setup, PNG_INTERLACE_ADAM7)).pixels,
      image.pixels);
}

TEST(DecodePng, EveryTruncationIsAnError) {
  const TempDirectory directory;
  const std::string good = png_of(noise_image(6, 4, 3), directory);
  for (size_t length = 0; length < good.size(); ++length) {
    SCOPED_TRACE(length);
    expect_error(Code::format, "t: ", [&] { decode(good.substr(0, length)); });
  }
  EXPECT_NO_THROW(decode(good + "tail"));
}

TEST(DecodePng, FlippedBytesGiveAnErrorOrAPicture) {
  const TempDirectory directory;
  const std::string good = png_of(noise_image(6, 4, 3), directory);
  for (size_t at = 0; at < good.size(); ++at) {
    for (const int flip : {0x01, 0x20, 0x80, 0xFF}) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ flip);
      const auto error = error_of([&] {
        const Image image = decode(bad);
        EXPECT_EQ(image.pixels.size(),
                  static_cast<size_t>(image.width * image.height * image.channels));
      });
      if (error) {
        EXPECT_THAT(error->code(), ::testing::AnyOf(Code::format, Code::limit));
      }
    }
  }
}

/// The first 33 bytes of a PNG: signature and IHDR, with a right checksum.
std::string png_header(uint32_t width, uint32_t height) {
  return make_png(1, 1, 8, PNG_COLOR_TYPE_GRAY, {"a"}, no_setup).substr(0, 16) +
         std::string{static_cast<char>(width >> 24),  static_cast<char>(width >> 16),
                     static_cast<char>(width >> 8),   static_cast<char>(width),
                     static_cast<char>(height >> 24), static_cast<char>(height >> 16),
                     static_cast<char>(height >> 8),  static_cast<char>(height)} +
         std::string("\x08\x00\x00\x00\x00\x00\x00\x00\x00", 9);
}

TEST(DecodePng, RefusesHugeSizesBeforeAllocating) {
  expect_error(Code::limit, "pixels allowed", [&] { decode(png_header(0x7FFFFFFF, 0x7FFFFFFF)); });
  expect_error(Code::format, "size 4294967295 x 1", [&] { decode(png_header(0xFFFFFFFF, 1)); });
  expect_error(Code::format, "size 0 x 5", [&] { decode(png_header(0, 5)); });
  expect_error(Code::format, "cannot hold 8192 x 8192", [&] { decode(png_header(8192, 8192)); });
  const TempDirectory directory;
  expect_error(Code::limit, "23 pixels",
               [&] { decode(png_of(noise_image(6, 4, 1), directory), {23}); });
  EXPECT_NO_THROW(decode(png_of(noise_image(6, 4, 1), directory), {24}));
}

TEST(DecodeImage, TellsOtherFormatsApart) {
  expect_error(Code::format, "empty", [&] { decode(""); });
  expect_error(Code::format, "neither PNG nor", [&] { decode("GIF89a"); });
  expect_error(Code::format, "neither PNG nor", [&] { decode("\xFF\xD8\xFF\xE0"); });
  expect_error(Code::format, "neither PNG nor", [&] { decode("P4\n1 1\n"); });
  expect_error(Code::format, "neither PNG nor", [&] { decode("P"); });
}

TEST(DecodePnm, ReadsAllFourKinds) {
  EXPECT_THAT(decode("P2\n# a comment\n3 1 # size\n255\n0 128 255\n").pixels,
              ElementsAre(0, 128, 255));
  EXPECT_THAT(decode("P2 2 1 15 0 15").pixels, ElementsAre(0, 255));
  EXPECT_THAT(decode("P2 1 1 65535 32768").pixels, ElementsAre(128));
  const Image text = decode("P3\n1 2\n1\n1 0 1\n#c\n0 1 0");
  EXPECT_EQ(text.channels, 3);
  EXPECT_THAT(text.pixels, ElementsAre(255, 0, 255, 0, 255, 0));
  EXPECT_THAT(decode("P5 2 1 255\nab").pixels, ElementsAre('a', 'b'));
  EXPECT_THAT(decode("P5 2 1 255\n\n\n").pixels, ElementsAre('\n', '\n'));
  EXPECT_THAT(decode(std::string("P5 2 1 65535\n\xFF\xFF\x80\x80", 17)).pixels,
              ElementsAre(255, 128));
  EXPECT_THAT(decode("P6 1 1 255\nabc").pixels, ElementsAre('a', 'b', 'c'));
}

TEST(DecodePnm, RefusesMalformedFiles) {
  struct Bad {
    std::string text;
    Code code;
    const char* message;
  };
  const Bad cases[] = {
      {"P5 ", Code::format, "expected a number (width), found the end"},
      {"P5 2", Code::format, "(height)"},
      {"P5 2 2", Code::format, "(the largest sample)"},
      {"P5 2 2 255", Code::format, "one space before the samples"},
      {"P5 x 2 255\nabcd", Code::format, "found byte 78"},
      {"P5 -2 2 255\nabcd", Code::format, "found byte 2d"},
      {"P5 2x2 255\nabcd", Code::format, "expected a space after width"},
      {"P5 0 2 255\n", Code::format, "0 x 2"},
      {"P5 2 2 0\nabcd", Code::format, "largest sample 0"},
      {"P5 2 2 65536\nabcd", Code::format, "more than 65535"},
      {"P5 2 2 255\nabc", Code::format, "needs at least 4 bytes of samples, found 3"},
      {"P5 2 2 256\nabcdefg", Code::format, "needs at least 8 bytes"},
      {"P5 99999999999999999999 2 255\n", Code::format, "width is more than"},
      {"P5 2147483647 2147483647 255\n", Code::limit, "pixels allowed"},
      {"P5 8192 8192 255\nabc", Code::format, "truncated"},
      {"P2 8192 8192 255\n1 2 3", Code::format, "truncated"},
      {"P5 1 1 10\nz", Code::format, "sample 122 is more than the largest, 10"},
      {"P2 2 1 10 1 11", Code::format, "a sample is more than 10"},
      {"P2 3 1 10 1111 11", Code::format, "a sample is more than 10"},
      {"P2 2 1 255 1 # 2", Code::format, "found the end of the file"},
      {"P2 2 1 255 1 -1", Code::format, "found byte 2d"},
      {"P2 #", Code::format, "(width)"},
  };
  for (const Bad& c : cases) {
    SCOPED_TRACE(c.text);
    expect_error(c.code, c.message, [&] { decode(c.text); });
  }
}

TEST(ToGrey, WeighsColoursAndKeepsGrey) {
  const Image image{4, 1, 3, {255, 0, 0, 0, 255, 0, 0, 0, 255, 77, 77, 77}};
  EXPECT_THAT(to_grey(image).pixels, ElementsAre(76, 150, 29, 77));
  EXPECT_EQ(to_grey(to_grey(image)).pixels, to_grey(image).pixels);
}

TEST(Resize, AveragesAreasWhenShrinking) {
  const Image image{4, 2, 1, {0, 10, 100, 200, 20, 30, 100, 200}};
  EXPECT_THAT(resize(image, 2, 1).pixels, ElementsAre(15, 150));
  const Image odd{3, 1, 1, {0, 90, 240}};  // each half takes half of the middle pixel
  EXPECT_THAT(resize(odd, 2, 1).pixels, ElementsAre(30, 190));
}

TEST(Resize, InterpolatesWhenGrowing) {
  const Image image{2, 1, 1, {0, 100}};
  EXPECT_THAT(resize(image, 4, 1).pixels, ElementsAre(0, 25, 75, 100));
  EXPECT_THAT(resize(Image{1, 1, 3, {1, 2, 3}}, 2, 2).pixels,
              ElementsAre(1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3));
}

TEST(Resize, KeepsConstantPicturesAndSameSizes) {
  for (const int64_t size : {1, 2, 5, 7, 13, 28, 64}) {
    const Image flat{28, 28, 1, std::vector<uint8_t>(28 * 28, 201)};
    const Image sized = resize(flat, size, 65 - size);
    EXPECT_THAT(sized.pixels, ::testing::Each(201)) << size;
    EXPECT_EQ(sized.width, size);
    EXPECT_EQ(sized.height, 65 - size);
  }
  const Image image = noise_image(5, 4, 3);
  EXPECT_EQ(resize(image, 5, 4).pixels, image.pixels);
}

TEST(Resize, RefusesImpossibleSizes) {
  const Image image = noise_image(2, 2, 1);
  expect_error(Code::shape, "0 x 2", [&] { resize(image, 0, 2); });
  expect_error(Code::shape, "resize", [&] { resize(image, 1 << 20, 1 << 20); });
  expect_error(Code::shape, "not possible", [&] { resize(Image{}, 2, 2); });
}

TEST(ToInput, GivesPlanesOfScaledFloats) {
  const Image rgb{2, 1, 3, {255, 0, 51, 0, 255, 102}};
  EXPECT_THAT(to_input(rgb, 3, 1, 2, 0.5, 0.5),
              ElementsAreArray({testing::FloatNear(1, 1e-6), testing::FloatNear(-1, 1e-6),
                                testing::FloatNear(-1, 1e-6), testing::FloatNear(1, 1e-6),
                                testing::FloatNear(-0.6F, 1e-6), testing::FloatNear(-0.2F, 1e-6)}));
  const Image grey{1, 1, 1, {255}};
  EXPECT_THAT(to_input(grey, 3, 1, 1, 0, 1), ElementsAre(1, 1, 1));
  EXPECT_EQ(to_input(rgb, 1, 4, 4, 0, 1).size(), 16U);
  expect_error(Code::shape, "2", [&] { to_input(rgb, 2, 1, 1, 0, 1); });
  expect_error(Code::numeric, "above 0", [&] { to_input(rgb, 1, 1, 1, 0, 0); });
}

}  // namespace image_test
}  // namespace sluice::data
