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

class LimitProbe {
 public:
  /// `cold`: bytes that no cache holds; see cold_bytes().
  LimitProbe(Limit limit, int threads, int64_t cold);
  ~LimitProbe();
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
  std::unique_ptr<probe::Pages> pages_;
  size_t words_ = 0, at_ = 0, step_ = 0;
};

}  // namespace sluice::engine::measure
