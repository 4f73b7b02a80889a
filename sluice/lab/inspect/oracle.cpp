#include "sluice/lab/inspect/oracle.h"

#include <torch/types.h>

#include "sluice/base/error.h"
#include "sluice/lab/brick/choice.h"
#include "sluice/lab/inspect/oracle_steps.h"
#include "sluice/lab/pass/steps.h"

namespace sluice::lab {
namespace {

/// Routes as they were, whatever happens.
class KeepRoutes {
 public:
  explicit KeepRoutes(Brick& root) : choices_(choices_of(root)) {
    for (const ChoiceRef& each : choices_) routes_.push_back(each.choice->route());
  }
  ~KeepRoutes() {
    for (size_t i = 0; i < choices_.size(); ++i) choices_[i].choice->set_route(routes_[i]);
  }
  KeepRoutes(const KeepRoutes&) = delete;
  KeepRoutes& operator=(const KeepRoutes&) = delete;

 private:
  std::vector<ChoiceRef> choices_;
  std::vector<Route> routes_;
};

void require_patterns(const ChoiceTable& table, const at::Tensor& patterns) {
  SLUICE_CHECK(patterns.dim() == 1 && patterns.size(0) == table.rows());
}

at::Tensor chosen_losses(const ChoiceTable& table, const at::Tensor& patterns) {
  require_patterns(table, patterns);
  return table.losses.gather(1, patterns.unsqueeze(1)).squeeze(1);
}

}  // namespace

int64_t pattern_count(const std::vector<int64_t>& choices) {
  int64_t count = 1;
  for (const int64_t each : choices) {
    count *= each;
    if (count > kMostPatterns) {
      fail(Code::limit, "oracle: more than {} patterns of choices; fewer slots can be enumerated",
           kMostPatterns);
    }
  }
  return count;
}

at::Tensor row_losses(const at::Tensor& logits, const at::Tensor& labels) {
  return at::cross_entropy_loss(logits.reshape({-1, logits.size(-1)}).to(at::kFloat),
                                labels.flatten(), {}, at::Reduction::None);
}

int64_t ChoiceTable::patterns() const { return pattern_count(choices); }

int64_t ChoiceTable::choice_of(int64_t pattern, size_t slot) const {
  for (size_t i = 0; i < slot; ++i) pattern /= choices[i];
  return pattern % choices[slot];
}

int64_t ChoiceTable::pattern_of(const std::vector<int64_t>& digits) const {
  SLUICE_CHECK(digits.size() == choices.size());
  int64_t pattern = 0;
  for (size_t i = digits.size(); i-- > 0;) pattern = pattern * choices[i] + digits[i];
  return pattern;
}

at::Tensor ChoiceTable::count(int64_t choice) const {
  at::Tensor result = at::zeros({patterns()}, at::kLong);
  auto* counts = result.data_ptr<int64_t>();
  for (int64_t p = 0; p < result.size(0); ++p) {
    for (size_t slot = 0; slot < choices.size(); ++slot) counts[p] += choice_of(p, slot) == choice;
  }
  return result;
}

ChoiceTable pattern_losses(Model& model, const at::Tensor& x, const at::Tensor& labels,
                           int64_t batch) {
  const std::vector<ChoiceRef> refs = choices_of(*model.root);
  ChoiceTable table;
  for (const ChoiceRef& ref : refs) {
    table.slots.push_back(ref.path);
    table.choices.push_back(ref.choice->options());
  }
  const bool sized = model.sizes.size() > 1;
  if (sized) {
    table.slots.emplace_back("size");
    table.choices.push_back(std::ssize(model.sizes));
  }
  if (table.slots.empty()) {
    fail(Code::unsupported,
         "oracle: nothing in this model can be chosen; it has no choice bricks and one size");
  }
  const int64_t patterns = table.patterns();
  const at::NoGradGuard no_grad;
  const EvaluationMode evaluation(*model.root);
  const KeepRoutes keep(*model.root);
  std::vector<at::Tensor> columns;
  for (int64_t p = 0; p < patterns; ++p) {
    for (size_t i = 0; i < refs.size(); ++i)
      refs[i].choice->set_route(Route::always(table.choice_of(p, i)));
    std::vector<at::Tensor> parts;
    for (int64_t first = 0; first < x.size(0); first += batch) {
      const int64_t count = std::min(batch, x.size(0) - first);
      Context context;
      if (sized) context.size = table.choice_of(p, refs.size());
      const at::Tensor logits = model.forward(as_input(x.narrow(0, first, count), model), context);
      parts.push_back(row_losses(logits, labels.narrow(0, first, count).to(logits.device())).cpu());
    }
    columns.push_back(at::cat(parts));
  }
  table.losses = at::stack(columns, 1);
  return table;
}

at::Tensor best_patterns(const ChoiceTable& table, const at::Tensor& allowed) {
  SLUICE_CHECK(allowed.dim() == 1 && allowed.size(0) == table.patterns());
  const at::Tensor index = allowed.nonzero().flatten();
  if (index.numel() == 0) fail(Code::usage, "oracle: no pattern is allowed");
  const at::Tensor losses = table.losses.index_select(1, index);
  const at::Tensor least = std::get<0>(losses.min(1, /*keepdim=*/true));
  const at::Tensor order = at::arange(index.numel(), 0, -1, losses.options());
  return index.index_select(0, ((losses == least) * order).argmax(1));
}

double mean_loss(const ChoiceTable& table, const at::Tensor& patterns) {
  return chosen_losses(table, patterns).to(at::kDouble).mean().item<double>();
}

at::Tensor shared_losses(const ChoiceTable& table) { return table.losses.to(at::kDouble).mean(0); }

at::Tensor difficulty(const ChoiceTable& table, int64_t reference) {
  return table.losses.select(1, reference) - std::get<0>(table.losses.min(1));
}

at::Tensor usage(const ChoiceTable& table, const at::Tensor& patterns, int64_t choice) {
  require_patterns(table, patterns);
  at::Tensor result = at::zeros({std::ssize(table.choices)}, at::kDouble);
  at::Tensor rest = patterns.clone();
  for (size_t slot = 0; slot < table.choices.size(); ++slot) {
    const at::Tensor digit = rest.remainder(table.choices[slot]);
    result[static_cast<int64_t>(slot)] = (digit == choice).to(at::kDouble).mean();
    rest = rest.floor_divide(table.choices[slot]);
  }
  return result;
}

at::Tensor exchange_order(int64_t rows, uint64_t seed) {
  return at::randperm(rows, at::detail::createCPUGenerator(seed),
                      at::TensorOptions().dtype(at::kLong));
}

double best_of_random(const ChoiceTable& table, int64_t tries, uint64_t seed) {
  const at::Tensor drawn =
      at::randint(table.patterns(), {table.rows(), tries}, at::detail::createCPUGenerator(seed),
                  at::TensorOptions().dtype(at::kLong));
  return std::get<0>(table.losses.gather(1, drawn).min(1)).to(at::kDouble).mean().item<double>();
}

}  // namespace sluice::lab
