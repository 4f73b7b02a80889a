// What a Trainer holds. Internal to train.
#pragma once
#include <chrono>
#include <memory>

#include "sluice/base/progress.h"
#include "sluice/lab/train/optimizer.h"
#include "sluice/lab/train/trainer.h"

namespace sluice::lab {

struct Trainer::State {
  Model& model;
  BatchSource& feed;
  TrainOptions options;
  TrainHooks hooks;
  NamedParameters parameters{};
  std::unique_ptr<Optimizer> optimizer{};
  int64_t step = 0;
  double seconds = 0;
  std::vector<CurvePoint> curve{};
  std::vector<ValidationPoint> validation{};
  /// Of the steps since the last curve point; read only at the next one, so that a GPU is never
  /// waited for.
  std::vector<at::Tensor> losses{}, correct{};
  double labels_per_sample = 1;
  /// Lives across the calls of run() that make up one training.
  std::unique_ptr<Progress> progress{};
  std::string note{};
  double tokens_per_second = 0;
  /// Of the last curve point, in this process.
  std::chrono::steady_clock::time_point point_time{};
  int64_t point_step = -1;

  bool first_process() const { return !options.processes || options.processes->rank() == 0; }
  int64_t process_count() const { return options.processes ? options.processes->size() : 1; }

  void take_step();
  /// Gradients of this process's part of the batch; gives the part's share of the batch's mean
  /// loss, and hits.
  std::pair<at::Tensor, at::Tensor> run_part();
  /// Gradients, loss and hits become those of the whole batch.
  void sum_over_processes(at::Tensor& loss, at::Tensor& hits);
  void log_point();
  void validate();
  void require_finite(double value, int64_t at) const;
  /// The first parameter or gradient that is not finite, in words.
  std::string culprit() const;
  void require_finite_state() const;
};

}  // namespace sluice::lab
