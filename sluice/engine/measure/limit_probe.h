// The limits of the machine as something that can be timed between the contenders of a case.
#pragma once
#include <memory>

#include "sluice/engine/measure/kernel_case.h"

namespace sluice::probe {
class Pages;
}

namespace sluice::engine::measure {

/// "memory bandwidth", "f32 peak", "int8 peak"
std::string_view limit_name(Limit limit);

/// Memory that probes read, taken from the system once.
class ProbeMemory {
 public:
  explicit ProbeMemory(int64_t bytes);
  ~ProbeMemory();
  std::span<const uint64_t> words() const { return words_; }  ///< a multiple of 128

 private:
  std::unique_ptr<probe::Pages> pages_;
  std::span<const uint64_t> words_;
};

class LimitProbe {
 public:
  /// `memory`: more than any cache holds, see cold_bytes(). It outlives the probe.
  LimitProbe(Limit limit, int threads, const ProbeMemory& memory);
  /// False for Limit::none and for an int8 peak this machine cannot measure.
  bool available() const { return amount_ > 0; }
  /// Bytes read or operations done by one run().
  double amount() const { return amount_; }
  void run();

 private:
  Limit limit_;
  int threads_;
  double amount_ = 0;
  int64_t rounds_ = 0;
  std::span<const uint64_t> words_;
  size_t at_ = 0;
};

}  // namespace sluice::engine::measure
