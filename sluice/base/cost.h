// What a computation costs, per sample: the unit of meters, budgets and tables.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace sluice {

struct Cost {
  int64_t macs = 0;    ///< multiply-accumulates of convolutions and matrix products, per sample
  int64_t params = 0;  ///< stored parameters (weights, biases, norm scale and shift)
  int64_t weight_bytes = 0;  ///< bytes of those parameters in their stored format

  Cost& operator+=(const Cost& other) {
    macs += other.macs;
    params += other.params;
    weight_bytes += other.weight_bytes;
    return *this;
  }
  friend Cost operator+(Cost a, const Cost& b) { return a += b; }
};

/// What really ran. One entry per brick or node; the engine reserves them all when it plans, so
/// that counting allocates nothing. Not thread-safe: one meter per running call.
class Meter {
 public:
  struct Entry {
    std::string path;
    int64_t calls = 0;
    int64_t macs = 0;   ///< summed over samples
    int64_t bytes = 0;  ///< weights and activations touched
  };

  /// Index of the entry of `path`, created on first use.
  size_t entry(const std::string& path);
  void add(size_t index, int64_t macs, int64_t bytes) {
    Entry& e = entries_[index];
    ++e.calls;
    e.macs += macs;
    e.bytes += bytes;
  }
  void add(const std::string& path, int64_t macs, int64_t bytes) { add(entry(path), macs, bytes); }
  void add_samples(int64_t samples) { samples_ += samples; }
  void reset();  ///< zeroes the counts, keeps the entries

  const std::vector<Entry>& entries() const { return entries_; }
  int64_t samples() const { return samples_; }
  int64_t macs() const;
  int64_t bytes() const;
  /// MACs per sample; 0 when nothing ran.
  double macs_per_sample() const;

 private:
  std::vector<Entry> entries_;
  std::unordered_map<std::string, size_t> index_;
  int64_t samples_ = 0;
};

/// What may run, per request. An unset field is unlimited. A network that cannot stay inside is
/// refused with Error{limit} before anything is computed.
struct Budget {
  std::optional<int64_t> macs_per_sample;
  std::optional<int64_t> weight_bytes;

  /// Throws Error{limit} naming `who`, the cost and the budget when `cost` exceeds a set field.
  void require(const Cost& cost, const std::string& who) const;
};

}  // namespace sluice
