#include "sluice/bundle/export/origin.h"

#include <algorithm>

namespace sluice::bundle {
namespace {

template <class Round>
bool is_exact(const PackedMatrix& matrix, Round round) {
  if (matrix.format != Format::f32) return false;
  std::vector<float> row(static_cast<size_t>(matrix.columns));
  for (int64_t r = 0; r < matrix.rows; ++r) {
    unpack_row(matrix, r, row);
    if (std::ranges::any_of(row, [&](float x) { return round(x) != x; })) return false;
  }
  return true;
}

}  // namespace

Origin find_origin(const Bundle& bundle) {
  Origin origin;
  const auto text = [](const Json& step, const char* key) {
    const auto it = step.find(key);
    return it != step.end() && it->is_string() ? it->get<std::string>() : std::string();
  };
  for (const Json& step : parse_json(bundle.provenance_json(), bundle.path())) {
    if (text(step, "step") != "import") continue;
    origin = {};
    origin.name = text(step, "source");
    origin.architecture = text(step, "architecture");
    origin.f16 = text(step, "stored") == "F16";
    if (const auto it = step.find("positions"); it != step.end() && it->is_number_unsigned())
      origin.positions = static_cast<int64_t>(std::min<uint64_t>(it->get<uint64_t>(), 1 << 24));
    if (const auto it = step.find("config"); it != step.end() && it->is_object())
      origin.config = *it;
    if (const auto it = step.find("preprocessor"); it != step.end() && it->is_object())
      origin.preprocessor = *it;
  }
  return origin;
}

bool is_exact_f16(const PackedMatrix& matrix) {
  return is_exact(matrix, [](float x) { return f16_to_f32(f32_to_f16(x)); });
}
bool is_exact_bf16(const PackedMatrix& matrix) {
  return is_exact(matrix, [](float x) { return bf16_to_f32(f32_to_bf16(x)); });
}

}  // namespace sluice::bundle
