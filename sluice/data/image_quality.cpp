#include "sluice/data/image_quality.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "sluice/base/error.h"

namespace sluice::data {
namespace {

constexpr int64_t kWindow = 11;
constexpr double kMost = 100;

void require_same(const Planes& a, const Planes& b, const char* what) {
  if (a.channels == b.channels && a.height == b.height && a.width == b.width && !a.values.empty()) {
    return;
  }
  fail(Code::shape, "{}: pictures of {} x {} x {} and {} x {} x {} values", what, a.channels,
       a.height, a.width, b.channels, b.height, b.width);
}

double clamped(float value) { return std::clamp(static_cast<double>(value), 0.0, 1.0); }

std::array<double, kWindow> gaussian() {
  std::array<double, kWindow> weights{};
  double sum = 0;
  for (int64_t i = 0; i < kWindow; ++i) {
    const auto x = static_cast<double>(i - kWindow / 2);
    weights[static_cast<size_t>(i)] = std::exp(-x * x / (2 * 1.5 * 1.5));
    sum += weights[static_cast<size_t>(i)];
  }
  for (double& weight : weights) weight /= sum;
  return weights;
}

/// The window's mean at every place inside: columns, then rows.
std::vector<double> windowed(const std::vector<double>& plane, int64_t height, int64_t width) {
  const auto weights = gaussian();
  const int64_t out_height = height - kWindow + 1, out_width = width - kWindow + 1;
  std::vector<double> rows(static_cast<size_t>(height * out_width), 0.0);
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < out_width; ++x) {
      double sum = 0;
      for (int64_t k = 0; k < kWindow; ++k) {
        sum += weights[static_cast<size_t>(k)] * plane[static_cast<size_t>(y * width + x + k)];
      }
      rows[static_cast<size_t>(y * out_width + x)] = sum;
    }
  }
  std::vector<double> result(static_cast<size_t>(out_height * out_width), 0.0);
  for (int64_t y = 0; y < out_height; ++y) {
    for (int64_t x = 0; x < out_width; ++x) {
      double sum = 0;
      for (int64_t k = 0; k < kWindow; ++k) {
        sum += weights[static_cast<size_t>(k)] * rows[static_cast<size_t>((y + k) * out_width + x)];
      }
      result[static_cast<size_t>(y * out_width + x)] = sum;
    }
  }
  return result;
}

}  // namespace

double psnr(const Planes& a, const Planes& b) {
  require_same(a, b, "psnr");
  double sum = 0;
  for (size_t i = 0; i < a.values.size(); ++i) {
    const double difference = clamped(a.values[i]) - clamped(b.values[i]);
    sum += difference * difference;
  }
  const double mean = sum / static_cast<double>(a.values.size());
  return mean < 1e-10 ? kMost : -10 * std::log10(mean);
}

double ssim(const Planes& a, const Planes& b) {
  require_same(a, b, "ssim");
  if (a.height < kWindow || a.width < kWindow) {
    fail(Code::shape, "ssim: a picture of {} x {} pixels; the window has {} x {}", a.height,
         a.width, kWindow, kWindow);
  }
  constexpr double kC1 = 0.01 * 0.01, kC2 = 0.03 * 0.03;
  const auto pixels = static_cast<size_t>(a.pixels());
  double total = 0;
  int64_t places = 0;
  for (int64_t c = 0; c < a.channels; ++c) {
    std::vector<double> x(pixels), y(pixels), xx(pixels), yy(pixels), xy(pixels);
    for (size_t i = 0; i < pixels; ++i) {
      x[i] = clamped(a.values[static_cast<size_t>(c) * pixels + i]);
      y[i] = clamped(b.values[static_cast<size_t>(c) * pixels + i]);
      xx[i] = x[i] * x[i], yy[i] = y[i] * y[i], xy[i] = x[i] * y[i];
    }
    const auto mean = [&](const std::vector<double>& plane) {
      return windowed(plane, a.height, a.width);
    };
    const auto mx = mean(x), my = mean(y), mxx = mean(xx), myy = mean(yy), mxy = mean(xy);
    for (size_t i = 0; i < mx.size(); ++i) {
      const double vx = mxx[i] - mx[i] * mx[i], vy = myy[i] - my[i] * my[i];
      const double cov = mxy[i] - mx[i] * my[i];
      total += (2 * mx[i] * my[i] + kC1) * (2 * cov + kC2) /
               ((mx[i] * mx[i] + my[i] * my[i] + kC1) * (vx + vy + kC2));
      ++places;
    }
  }
  return total / static_cast<double>(places);
}

}  // namespace sluice::data
