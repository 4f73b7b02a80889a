#include "sluice/lab/pass/size_meter.h"

#include <algorithm>

#include "sluice/base/json.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {
namespace {

at::Tensor first_choices(const at::Tensor& logits) { return logits.argmax(-1).flatten(); }

}  // namespace

PassInput part_of(const PassInput& input, int64_t first, int64_t count) {
  PassInput part = input;
  part.calibration = input.calibration.narrow(0, first, count);
  return part;
}

Metered meter_size(Model& model, const PassInput& data, const std::string& what, int64_t size,
                   std::vector<at::Tensor>& dense) {
  Metered result;
  const bool fills = dense.empty();
  double same = 0;
  size_t batch = 0;
  Meter meter;
  for_each_calibration_batch(model, data, what, [&](const at::Tensor& x) {
    Context context;
    context.meter = &meter;
    context.size = size;
    const at::Tensor found = first_choices(model.root->forward(x, context));
    if (fills) dense.push_back(found);
    same += (found == dense[batch++]).sum().item<double>();
    result.rows += found.numel();
  });
  result.macs = static_cast<double>(meter.macs()) / static_cast<double>(result.rows);
  result.agreement = same / static_cast<double>(result.rows);
  return result;
}

std::vector<ShareTarget> read_shares(const Json& options, const std::string& prefix,
                                     const std::string& what) {
  auto shares = json_get_or<std::vector<double>>(options, "shares", {0.5, 0.7, 0.85}, what);
  std::sort(shares.begin(), shares.end());
  std::vector<ShareTarget> targets;
  for (const double share : shares) {
    if (!(share > 0 && share < 1))
      fail(Code::config, "{}: shares: expected shares of the dense cost between 0 and 1, found {}",
           what, share);
    targets.push_back({fmt::format("{}{:.4g}", prefix, 100 * share), share});
    if (targets.size() > 1 && targets[targets.size() - 2].name == targets.back().name)
      fail(Code::config, "{}: shares: {} is there twice", what, share);
  }
  if (targets.empty() || targets.size() > 255)
    fail(Code::config, "{}: shares: expected 1 to 255, found {}", what, targets.size());
  return targets;
}

}  // namespace sluice::lab
