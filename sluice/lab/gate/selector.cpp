#include "sluice/lab/gate/selector.h"

#include <torch/types.h>

#include <limits>
#include <vector>

#include "sluice/base/normal_quantile.h"
#include "sluice/bundle/ops_sparse.h"
#include "sluice/lab/brick/attributes.h"
#if SLUICE_HAS_ENGINE
#include "sluice/engine/kernel/selector.h"
#endif

namespace sluice::lab {
namespace {

constexpr int64_t kMostEntries = std::numeric_limits<int32_t>::max();

#if SLUICE_HAS_ENGINE

engine::Selector for_engine(const Selector& selector) {
  using Kind = engine::Selector::Kind;
  engine::Selector result;
  switch (selector.kind) {
    case Selector::Kind::all:
      result.kind = Kind::all;
      break;
    case Selector::Kind::top_k:
      result.kind = Kind::top_k;
      break;
    case Selector::Kind::threshold:
      result.kind = Kind::threshold;
      break;
    case Selector::Kind::statistical:
      result.kind = Kind::statistical;
      break;
  }
  result.rank = selector.magnitude ? engine::Rank::magnitude : engine::Rank::value;
  result.k = selector.k;
  result.threshold = selector.threshold;
  result.keep = selector.keep;
  return result;
}

at::Tensor select_by_engine(const at::Tensor& x, const Selector& selector,
                            const at::Tensor& weight) {
  const at::Tensor source = x.contiguous();
  at::Tensor factors;
  if (weight.defined()) factors = weight.detach().to(at::kFloat).contiguous();
  at::Tensor kept = at::zeros(source.sizes(), source.options().dtype(at::kBool));
  const auto n = static_cast<size_t>(source.size(-1));
  if (n == 0) return kept;
  const engine::Selector chosen = for_engine(selector);
  std::vector<int32_t> index(n);
  const float* row = source.data_ptr<float>();
  bool* out = kept.data_ptr<bool>();
  const float* scale = factors.defined() ? factors.data_ptr<float>() : nullptr;
  const int64_t rows = source.numel() / source.size(-1);
  for (int64_t r = 0; r < rows; ++r, row += n, out += n) {
    const size_t count = chosen({row, n, chosen.rank, scale}, index.data());
    for (size_t i = 0; i < count; ++i) out[index[i]] = true;
  }
  return kept;
}

#endif

at::Tensor above_statistical(const at::Tensor& scores, double keep) {
  if (keep >= 1) return at::isnan(scores).logical_not();
  const at::Tensor finite = at::isfinite(scores);
  const at::Tensor wide = at::where(finite, scores, at::zeros_like(scores)).to(at::kDouble);
  const at::Tensor count = finite.sum(-1, /*keepdim=*/true).to(at::kDouble);
  const at::Tensor mean = wide.sum(-1, true) / count.clamp_min(1);
  const at::Tensor off = at::where(finite, wide - mean, at::zeros_like(wide));
  const at::Tensor deviation = (off.square().sum(-1, true) / (count - 1).clamp_min(1)).sqrt();
  const at::Tensor bound = (mean + deviation * normal_quantile(1 - keep)).to(scores.scalar_type());
  return at::logical_and(scores > bound, count > 0);
}

}  // namespace

int64_t Selector::most_kept(int64_t n) const { return kind == Kind::top_k ? std::min(n, k) : n; }

Json selector_json(const Selector& selector) {
  switch (selector.kind) {
    case Selector::Kind::all:
      return {{"select", "all"}};
    case Selector::Kind::top_k:
      return {{"select", "topk"}, {"k", selector.k}};
    case Selector::Kind::threshold:
      return {{"select", "threshold"}, {"threshold", selector.threshold}};
    case Selector::Kind::statistical:
      return {{"select", "statistical"}, {"keep", selector.keep}};
  }
  SLUICE_CHECK(!"every kind is above");
  return {};
}

Selector read_selector(const Json& attributes, std::string_view kind) {
  if (!attributes.is_object()) fail(Code::format, "{}: expected a table of attributes", kind);
  Json own = Json::object();
  for (const char* key : {"select", "k", "threshold", "keep"}) {
    if (attributes.contains(key)) own[key] = attributes.at(key);
  }
  const AttributeReader read(own, kind, {"select", "k", "threshold", "keep"});
  const std::string name = read.text("select");
  if (name == "all") return {};
  if (name == "topk") {
    return Selector::top(require_range(read.integer("k"), 0, kMostEntries, "k", kind));
  }
  if (name == "threshold") {
    constexpr double kMost = std::numeric_limits<float>::max();
    return Selector::above(static_cast<float>(
        require_range(read.number("threshold", 0), -kMost, kMost, "threshold", kind)));
  }
  if (name == "statistical") {
    return Selector::share(require_range(read.number("keep", 0), 1e-9, 1.0, "keep", kind));
  }
  fail(Code::config, "select of {}: expected all, topk, threshold or statistical, found '{}'", kind,
       name.substr(0, 60));
}

void add_selector(const Selector& selector, bundle::Attributes& attributes) {
  SLUICE_CHECK(selector.kind != Selector::Kind::all);
  if (selector.kind == Selector::Kind::top_k) {
    attributes["select"] = std::string("topk");
    attributes["k"] = selector.k;
  } else if (selector.kind == Selector::Kind::threshold) {
    attributes["select"] = std::string("threshold");
    attributes["threshold"] = static_cast<double>(selector.threshold);
  } else {
    attributes["select"] = std::string("statistical");
    attributes["keep"] = selector.keep;
  }
}

namespace {

/// The attribute in which selectors of that kind differ.
const char* number_of(Selector::Kind kind) {
  if (kind == Selector::Kind::top_k) return "k";
  return kind == Selector::Kind::threshold ? "threshold" : "keep";
}

void require_one_kind(const std::vector<Selector>& selectors) {
  SLUICE_CHECK(!selectors.empty());
  for (const Selector& each : selectors) {
    SLUICE_CHECK(each.kind == selectors.front().kind);
    SLUICE_CHECK(selectors.size() == 1 || each.kind != Selector::Kind::all);
  }
}

}  // namespace

Json selectors_json(const std::vector<Selector>& selectors) {
  require_one_kind(selectors);
  Json json = selector_json(selectors.front());
  if (selectors.size() == 1) return json;
  const char* number = number_of(selectors.front().kind);
  Json list = Json::array();
  for (const Selector& each : selectors) list.push_back(selector_json(each).at(number));
  json[number] = std::move(list);
  return json;
}

std::vector<Selector> read_selectors(const Json& attributes, std::string_view kind) {
  for (const char* number : {"k", "threshold", "keep"}) {
    const auto list = attributes.is_object() ? attributes.find(number) : attributes.end();
    if (list == attributes.end() || !list->is_array()) continue;
    if (list->size() < 2 || list->size() > bundle::kMaxSizes) {
      fail(Code::config, "{} of {}: a list of {}; expected 2 to {}, one per size", number, kind,
           list->size(), bundle::kMaxSizes);
    }
    std::vector<Selector> result;
    for (const Json& each : *list) {
      Json one = attributes;
      one[number] = each;
      result.push_back(read_selector(one, kind));
      if (result.back().kind == Selector::Kind::all ||
          std::string_view(number_of(result.back().kind)) != number) {
        fail(Code::config, "{} of {}: a list, but select is '{}'", number, kind,
             attributes.at("select").get<std::string>());
      }
    }
    return result;
  }
  return {read_selector(attributes, kind)};
}

void add_selectors(const std::vector<Selector>& selectors, bundle::Attributes& attributes) {
  require_one_kind(selectors);
  add_selector(selectors.front(), attributes);
  if (selectors.size() == 1) return;
  if (selectors.front().kind == Selector::Kind::top_k) {
    std::vector<int64_t> list;
    for (const Selector& each : selectors) list.push_back(each.k);
    attributes["k"] = std::move(list);
    return;
  }
  const bool threshold = selectors.front().kind == Selector::Kind::threshold;
  std::vector<double> list;
  for (const Selector& each : selectors)
    list.push_back(threshold ? static_cast<double>(each.threshold) : each.keep);
  attributes[threshold ? "threshold" : "keep"] = std::move(list);
}

at::Tensor statistical_bound(const at::Tensor& scores, double keep) {
  if (!(keep > 0 && keep < 1)) {
    fail(Code::config, "statistical top-k: expected a share between 0 and 1, found {}", keep);
  }
  const at::Tensor mean = scores.mean(-1, /*keepdim=*/true);
  const double others = std::max<double>(1, static_cast<double>(scores.size(-1) - 1));
  const at::Tensor variance = (scores - mean).square().sum(-1, /*keepdim=*/true) / others;
  // The root's slope is infinite at 0, where all scores are equal.
  return mean + (variance + 1e-20).sqrt() * normal_quantile(1 - keep);
}

at::Tensor detail::select_by_tensors(const at::Tensor& x, const Selector& selector,
                                     const at::Tensor& weight) {
  const int64_t n = x.size(-1);
  const bool everything = selector.kind == Selector::Kind::all ||
                          (selector.kind == Selector::Kind::top_k && selector.k >= n);
  if (everything) return at::ones(x.sizes(), x.options().dtype(at::kBool));
  at::Tensor scores = selector.magnitude ? x.abs() : x;
  if (weight.defined()) scores = scores * weight.detach().to(scores.options());
  if (selector.kind == Selector::Kind::threshold) return scores > selector.threshold;
  if (selector.kind == Selector::Kind::statistical) {
    return above_statistical(scores, selector.keep);
  }
  constexpr double kLowest = -std::numeric_limits<double>::infinity();
  const at::Tensor ranked = scores.masked_fill(at::isnan(scores), kLowest);
  const auto [values, order] = at::sort(ranked, /*stable=*/true, /*dim=*/-1, /*descending=*/true);
  return at::zeros(x.sizes(), x.options().dtype(at::kBool))
      .scatter(-1, order.narrow(-1, 0, selector.k), true);
}

at::Tensor select(const at::Tensor& x, const Selector& selector, const at::Tensor& weight) {
  const at::Tensor source = x.detach();
  if (source.dim() == 0) fail(Code::shape, "select: expected rows of scores, found one number");
  if (weight.defined() && (weight.dim() != 1 || weight.size(0) != source.size(-1))) {
    fail(Code::shape, "select: {} scores a row, but weights {}", source.size(-1),
         to_string(Shape(weight.sizes().begin(), weight.sizes().end())));
  }
#if SLUICE_HAS_ENGINE
  if (source.device().is_cpu() && source.scalar_type() == at::kFloat) {
    return select_by_engine(source, selector, weight);
  }
#endif
  return detail::select_by_tensors(source, selector, weight);
}

}  // namespace sluice::lab
