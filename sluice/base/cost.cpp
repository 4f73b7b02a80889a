#include "sluice/base/cost.h"

#include "sluice/base/error.h"
#include "sluice/base/table.h"

namespace sluice {

size_t Meter::entry(const std::string& path) {
  const auto [place, inserted] = index_.try_emplace(path, entries_.size());
  if (inserted) {
    entries_.push_back({path});
  }
  return place->second;
}

void Meter::reset() {
  for (Entry& e : entries_) {
    e.calls = e.macs = e.bytes = 0;
  }
  samples_ = 0;
}

int64_t Meter::macs() const {
  int64_t sum = 0;
  for (const Entry& e : entries_) {
    sum += e.macs;
  }
  return sum;
}

int64_t Meter::bytes() const {
  int64_t sum = 0;
  for (const Entry& e : entries_) {
    sum += e.bytes;
  }
  return sum;
}

double Meter::macs_per_sample() const {
  return samples_ == 0 ? 0.0 : static_cast<double>(macs()) / static_cast<double>(samples_);
}

void Budget::require(const Cost& cost, const std::string& who) const {
  if (macs_per_sample && cost.macs > *macs_per_sample) {
    fail(Code::limit,
         "{}: needs {} MACs per sample ({}), the budget allows {} ({}); raise the budget or use a "
         "smaller model",
         who, cost.macs, format_count(cost.macs), *macs_per_sample, format_count(*macs_per_sample));
  }
  if (weight_bytes && cost.weight_bytes > *weight_bytes) {
    fail(Code::limit,
         "{}: needs {} bytes of weights ({}), the budget allows {} ({}); raise the budget or use a "
         "smaller model",
         who, cost.weight_bytes, format_bytes(cost.weight_bytes), *weight_bytes,
         format_bytes(*weight_bytes));
  }
}

}  // namespace sluice
