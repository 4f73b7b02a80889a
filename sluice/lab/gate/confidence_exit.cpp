#include "sluice/lab/gate/confidence_exit.h"

#include <torch/types.h>

#include <algorithm>
#include <numeric>

#include "sluice/base/error.h"
#include "sluice/base/shape.h"

namespace sluice::lab {
namespace {

constexpr double kNever = 2.0;

void check_table(const DepthTable& table) {
  if (table.confidence.dim() != 2 || table.confidence.sizes() != table.choice.sizes() ||
      table.confidence.size(1) < 1) {
    fail(Code::shape, "exits: expected confidence and choice [rows, depths], found {} and {}",
         to_string(table.confidence.sizes()), to_string(table.choice.sizes()));
  }
}

std::vector<double> column(const at::Tensor& values, int64_t index) {
  const at::Tensor flat = values.select(1, index).to(at::kCPU, at::kDouble).contiguous();
  return {flat.data_ptr<double>(), flat.data_ptr<double>() + flat.numel()};
}

}  // namespace

DepthTable depth_table(const at::Tensor& logits) {
  if (logits.dim() != 3) {
    fail(Code::shape, "exits: expected logits [rows, depths, V], found {}",
         to_string(logits.sizes()));
  }
  const auto [confidence, choice] = at::softmax(logits, -1).max(-1);
  return {confidence, choice};
}

at::Tensor exit_depths(const DepthTable& table, const std::vector<double>& thresholds) {
  check_table(table);
  const int64_t depths = table.confidence.size(1);
  if (std::ssize(thresholds) != depths - 1) {
    fail(Code::shape, "exits: {} thresholds for {} depths; expected one less than depths",
         thresholds.size(), depths);
  }
  at::Tensor result = at::full({table.confidence.size(0)}, depths - 1, table.choice.options());
  for (int64_t d = depths - 1; d-- > 0;) {
    const at::Tensor leaves = table.confidence.select(1, d) >= thresholds[static_cast<size_t>(d)];
    result = at::where(leaves, at::full_like(result, d), result);
  }
  return result;
}

at::Tensor exit_choices(const DepthTable& table, const at::Tensor& depths) {
  check_table(table);
  return table.choice.gather(1, depths.unsqueeze(1)).squeeze(1);
}

std::vector<double> calibrate_exits(const DepthTable& table, double risk) {
  check_table(table);
  if (!(risk >= 0 && risk <= 1)) {
    fail(Code::config, "exits: risk {}; expected a share from 0 to 1", risk);
  }
  const int64_t depths = table.confidence.size(1), rows = table.confidence.size(0);
  std::vector<size_t> inside(static_cast<size_t>(rows));
  std::iota(inside.begin(), inside.end(), size_t{0});
  const std::vector<double> last = column(table.choice, depths - 1);
  std::vector<double> thresholds;
  for (int64_t d = 0; d + 1 < depths; ++d) {
    // In single precision, as the rule compares.
    const std::vector<double> confidence = column(table.confidence, d),
                              choice = column(table.choice, d);
    std::stable_sort(inside.begin(), inside.end(),
                     [&](size_t a, size_t b) { return confidence[a] > confidence[b]; });
    size_t wrong = 0, leaving = 0;
    for (size_t i = 0; i < inside.size(); ++i) {
      wrong += choice[inside[i]] != last[inside[i]] ? 1 : 0;
      const bool whole =  // equal confidences leave together
          i + 1 == inside.size() || confidence[inside[i + 1]] < confidence[inside[i]];
      if (whole && double(wrong) <= risk * double(i + 1)) leaving = i + 1;
    }
    thresholds.push_back(leaving == 0 ? kNever : confidence[inside[leaving - 1]]);
    inside.erase(inside.begin(), inside.begin() + static_cast<std::ptrdiff_t>(leaving));
  }
  return thresholds;
}

}  // namespace sluice::lab
