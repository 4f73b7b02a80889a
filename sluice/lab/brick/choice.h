// A slot with unlike choices: each row goes through one of several bricks, or through none. The
// study of how much choosing can save (Duo-LLM: Alizadeh et al., arXiv 2410.10846) puts a large, a
// small and no feed-forward network side by side; lab/inspect/oracle.h enumerates what choosing
// could give.
#pragma once
#include "sluice/lab/brick/brick.h"

namespace sluice::lab {

/// Who chooses. Part of a brick's state like the training flag, not of its description: a copy and
/// a reloaded brick follow their router.
struct Route {
  enum class Kind : uint8_t {
    router,  ///< the largest of the router's logits; of equal ones the first. No router: option 0
    soft,    ///< all options run, mixed by softmax(logits / temperature); for training routers
    random,  ///< every row draws one, each as probable, from the context's generator: any path
             ///< through the network becomes a network of its own
    given    ///< `choice`
  };
  Kind kind = Kind::router;
  double temperature = 1;  ///< of soft; above 0
  at::Tensor choice = {};  ///< given: int64, one number for all rows or one per row

  static Route soft(double temperature) { return {Kind::soft, temperature, {}}; }
  static Route random() { return {Kind::random, 1, {}}; }
  static Route given(at::Tensor choice) { return {Kind::given, 1, std::move(choice)}; }
  static Route always(int64_t option);
};

/// y = option_c(x) for each row of x [.., D], c the row's choice; an empty option gives zeros.
/// Slots: router (empty: option 0, or what set_route() says): a linear layer D -> options; option0
/// .. : bricks that take each row by itself and give rows of the same width. Rows that a hard
/// choice keeps from an option are not computed. The gate log gets the choices of each forward:
/// probability and decision [rows, options], MACs per row of each option.
class Choice final : public Brick {
 public:
  /// Empty slots, filled by adopt(). 2 to 16 options.
  explicit Choice(int64_t options);
  std::string kind() const override { return "choice"; }
  Json attributes() const override { return {{"options", options_}}; }
  at::Tensor forward(const at::Tensor& x, Context& context) override;
  Shape output_shape(const Shape& input) const override;
  /// Of the most expensive option, and the router.
  Cost cost(const Shape& input) const override;
  /// The router's choice (no router: option 0): rows are compacted for each option and put back.
  bundle::Value lower(bundle::Builder& builder, const bundle::Value& x,
                      const std::string& path) const override;
  void check_slots() const override;

  int64_t options() const { return options_; }
  Slot& option(int64_t index) const;  ///< throws Error{usage} for a number outside
  Slot& router() const { return *router_; }
  bool routed() const { return !router_->empty(); }
  const Route& route() const { return route_; }
  /// Throws Error{config} for a temperature that is not above 0, given choices that are no int64,
  /// and soft without a router.
  void set_route(Route route);
  /// What one option gives for x [.., D], whatever the route says.
  at::Tensor run_option(int64_t index, const at::Tensor& x, Context& context) const;
  /// The router's choice for each row of x [.., D]: int64 [..].
  at::Tensor routed_choice(const at::Tensor& x, Context& context) const;

 private:
  at::Tensor mixed(const at::Tensor& x, Context& context) const;
  at::Tensor chosen(const at::Tensor& rows, Context& context) const;
  void log(const at::Tensor& x, const at::Tensor& probability, const at::Tensor& decision,
           Context& context) const;

  int64_t options_;
  Slot* router_;
  std::vector<Slot*> option_;
  Route route_;
};

/// A slot that holds a Choice.
struct ChoiceRef {
  std::string path;
  Choice* choice;
};
/// All below `root`, in order.
std::vector<ChoiceRef> choices_of(Brick& root);
/// The same route for every Choice below `root`.
void set_routes(Brick& root, const Route& route);

/// (mean over all records and rows of the probability of `option` - target)^2: one budget for the
/// whole network, so that layers may share it as they like. 0 for an empty log.
at::Tensor choice_budget_loss(const GateLog& log, int64_t option, double target);

}  // namespace sluice::lab
