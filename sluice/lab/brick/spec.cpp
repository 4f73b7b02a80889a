// Descriptions of bricks: writing them, building bricks from untrusted ones, cloning.
#include <fmt/ranges.h>  // fmt::join, from fmt 11 on

#include <algorithm>
#include <limits>
#include <map>
#include <mutex>

#include "sluice/base/json.h"
#include "sluice/base/path_pattern.h"
#include "sluice/lab/brick/attributes.h"
#include "sluice/lab/brick/brick.h"
#include "sluice/lab/brick/builtin.h"
#include "sluice/lab/brick/early_exit_decoder.h"
#include "sluice/lab/brick/graph_network.h"
#include "sluice/lab/brick/init.h"
#include "sluice/lab/model/model.h"
#include "sluice/lab/quant/quant_conv.h"

namespace sluice::lab {
namespace {

constexpr int kMaxDepth = 32;
constexpr size_t kMaxSlots = 1000;

struct Registry {
  std::mutex mutex;
  std::map<std::string, BrickFactory> factories = {
      {"linear", make_linear},
      {"conv2d", make_conv2d},
      {"graph_conv", make_graph_conv},
      {"graph_network", make_graph_network},
      {"batch_norm", make_batch_norm},
      {"activation", make_activation},
      {"pool2d", make_pool2d},
      {"flatten", make_flatten},
      {"identity", make_identity},
      {"channel_mask", make_channel_mask},
      {"sequential", make_sequential},
      {"residual_block", make_residual_block},
      {"gate", make_gate},
      {"constant_mask", make_constant_mask},
      {"spark_ffn", make_spark_ffn},
      {"spark_attention", make_spark_attention},
      {"sparse_linear", make_sparse_linear},
      {"quant_linear", make_quant_linear},
      {"quant_conv", make_quant_conv},
      {"embedding", make_embedding},
      {"quant_embedding", make_quant_embedding},
      {"rms_norm", make_rms_norm},
      {"layer_norm", make_layer_norm},
      {"attention", make_attention},
      {"ffn", make_ffn},
      {"transformer_block", make_transformer_block},
      {"decoder", make_decoder},
      {"text_encoder", make_text_encoder},
      {"learned_rows", make_learned_rows},
      {"vision_transformer", make_vision_transformer},
      {"nested_linear", make_nested_linear},
      {"nested_conv2d", make_nested_conv2d},
      {"nested_chain", make_nested_chain},
      {"fading_activation", make_fading_activation},
      {"choice", make_choice},
      {"stitch", make_stitch},
      {"lora_linear", make_lora_linear},
      {"sized_linear", make_sized_linear},
      {"stitched", make_stitched},
      {"channel_norm", make_channel_norm},
      {"channel_attention", make_channel_attention},
      {"gated_conv_ffn", make_gated_conv_ffn},
      {"pixel_shuffle", make_pixel_shuffle},
      {"prompt_generator", make_prompt_generator},
      {"restoration_net", make_restoration_net},
      {"gated_conv_unit", make_gated_conv_unit},
      {"gated_conv_chain", make_gated_conv_chain},
      {"exit_gate", make_exit_gate},
      {"exit_chain", make_exit_chain},
      {"exit_decoder", make_exit_decoder},
      {"early_exit_decoder", make_early_exit_decoder},
      {"prefix_mlp", make_prefix_mlp},
      {"ordinal_gate", make_ordinal_gate},
      {"constant_choice", make_constant_choice},
  };
};

Registry& registry() {
  static Registry instance;
  return instance;
}

BrickFactory find_factory(const std::string& kind, const std::string& place) {
  {
    const std::lock_guard lock(registry().mutex);
    const auto found = registry().factories.find(kind);
    if (found != registry().factories.end()) {
      return found->second;
    }
  }
  const std::vector<std::string> kinds = brick_kinds();
  const std::string near = nearest_name(kind, kinds);
  fail(Code::config, "{}.kind: unknown brick '{}'{}; known: {}", place, kind.substr(0, 60),
       near.empty() ? "" : fmt::format(", did you mean '{}'?", near), fmt::join(kinds, ", "));
}

// Runs `call`, with `place` in front of the message of what it throws.
template <class F>
auto at_place(const std::string& place, F&& call) {
  try {
    return call();
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}{}", place, error.what()));
  } catch (const c10::Error& error) {
    throw Error(Code::limit, fmt::format("{}{}", place, error.what_without_backtrace()));
  }
}

int64_t own_elements(const Brick& brick) {
  int64_t total = 0;
  for (const at::Tensor& tensor : brick.parameters(/*recurse=*/false)) total += tensor.numel();
  for (const at::Tensor& tensor : brick.buffers(/*recurse=*/false)) total += tensor.numel();
  return total;
}

// `room`: how many more values the network may have.
BrickPtr make_at(const Json& spec, const std::string& place, int depth, int64_t& room) {
  if (depth > kMaxDepth) {
    fail(Code::limit, "{}: bricks are nested deeper than {} levels", place, kMaxDepth);
  }
  if (!spec.is_object()) {
    fail(Code::format, "{}: expected a table with 'kind', found {}", place, spec.type_name());
  }
  json_require_known_keys(spec, {"kind", "attributes", "slots"}, place);
  const auto kind = json_get<std::string>(spec, "kind", place);
  const BrickFactory factory = find_factory(kind, place);
  const Json none = Json::object();
  const auto attributes = spec.find("attributes");
  BrickPtr brick = at_place(place + ".attributes.",
                            [&] { return factory(attributes == spec.end() ? none : *attributes); });
  room -= own_elements(*brick);
  if (room < 0) {
    fail(Code::limit, "{}: up to here the network has more values than it may ({} too many)", place,
         -room);
  }
  if (const auto slots = spec.find("slots"); slots != spec.end()) {
    if (!slots->is_object()) {
      fail(Code::format, "{}.slots: expected a table, found {}", place, slots->type_name());
    }
    if (slots->size() > kMaxSlots) {
      fail(Code::limit, "{}.slots: {} slots; at most {}", place, slots->size(), kMaxSlots);
    }
    for (const auto& [name, child] : slots->items()) {
      const std::string child_place = fmt::format("{}.slots.{}", place, name.substr(0, 80));
      BrickPtr made = child.is_null() ? nullptr : make_at(child, child_place, depth + 1, room);
      at_place(child_place + ": ", [&] { brick->adopt(name, std::move(made)); });
    }
  }
  at_place(place + ".slots.", [&] { brick->check_slots(); });
  return brick;
}

}  // namespace

bool register_brick(const std::string& kind, BrickFactory factory) {
  const std::lock_guard lock(registry().mutex);
  return registry().factories.emplace(kind, factory).second;
}

std::vector<std::string> brick_kinds() {
  const std::lock_guard lock(registry().mutex);
  std::vector<std::string> result;
  for (const auto& [kind, factory] : registry().factories) result.push_back(kind);
  return result;
}

Json spec_of(const Brick& brick) {
  Json spec = {{"kind", brick.kind()}, {"attributes", brick.attributes()}};
  if (!brick.slots().empty()) {
    Json slots = Json::object();
    for (const auto& slot : brick.slots()) {
      slots[slot->name()] = slot->empty() ? Json() : spec_of(**slot);
    }
    spec["slots"] = std::move(slots);
  }
  return spec;
}

BrickPtr make_brick(const Json& spec, int64_t max_elements) {
  int64_t room = max_elements;
  return make_at(spec, "model", 1, room);
}

BrickPtr clone(const Brick& brick) {
  const WithoutInit without_init;
  BrickPtr copy = make_brick(spec_of(brick));
  const auto from = named_state(brick);
  const auto to = named_state(*copy);
  SLUICE_CHECK(from.size() == to.size());
  for (size_t i = 0; i < from.size(); ++i) {
    SLUICE_CHECK(from[i].first == to[i].first && from[i].second.sizes() == to[i].second.sizes());
    at::Tensor target = to[i].second;
    target.set_data(from[i].second.detach().clone());  // takes device and dtype along
    target.set_requires_grad(from[i].second.requires_grad());
  }
  copy->train(brick.is_training());
  const auto modules = brick.modules(/*include_self=*/false);
  const auto copies = copy->modules(/*include_self=*/false);
  SLUICE_CHECK(modules.size() == copies.size());
  for (size_t i = 0; i < modules.size(); ++i) {  // parents before children, as train() recurses
    copies[i]->train(modules[i]->is_training());
  }
  return copy;
}

int64_t require_range(int64_t value, int64_t low, int64_t high, std::string_view key,
                      std::string_view kind) {
  if (value < low || value > high) {
    fail(Code::config, "{} of {}: expected {} to {}, found {}", key, kind, low, high, value);
  }
  return value;
}

double require_range(double value, double low, double high, std::string_view key,
                     std::string_view kind) {
  if (!(value >= low && value <= high)) {
    fail(Code::config, "{} of {}: expected {} to {}, found {}", key, kind, low, high, value);
  }
  return value;
}

void require_elements(std::initializer_list<int64_t> sizes, std::string_view key,
                      std::string_view kind) {
  int64_t product = 1;
  for (const int64_t size : sizes) product = checked_mul(product, size, key);
  if (product > kMaxElements) {
    fail(Code::limit, "{} of {}: {} values; at most {}", key, kind, product, kMaxElements);
  }
}

AttributeReader::AttributeReader(const Json& attributes, std::string_view kind,
                                 std::initializer_list<std::string_view> known)
    : attributes_(attributes), kind_(kind) {
  if (!attributes.is_object()) {
    fail(Code::format, "{}: expected a table of attributes, found {}", kind,
         attributes.type_name());
  }
  for (const auto& [key, value] : attributes.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    const std::vector<std::string> names(known.begin(), known.end());
    const std::string near = nearest_name(key, names);
    fail(Code::config, "{} of {}: unknown{}; known: {}", key.substr(0, 60), kind,
         near.empty() ? "" : fmt::format(", did you mean '{}'?", near),
         names.empty() ? std::string("none") : fmt::format("{}", fmt::join(names, ", ")));
  }
}

const Json* AttributeReader::find(std::string_view key) const {
  const auto found = attributes_.find(key);
  return found == attributes_.end() ? nullptr : &*found;
}

const Json& AttributeReader::at(std::string_view key) const {
  const Json* found = find(key);
  if (found == nullptr) fail(Code::config, "{} of {}: missing", key, kind_);
  return *found;
}

void AttributeReader::wrong(std::string_view key, std::string_view expected,
                            const Json& found) const {
  fail(Code::config, "{} of {}: expected {}, found {}", key, kind_, expected,
       found.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 60));
}

int64_t AttributeReader::integer(std::string_view key) const {
  const Json& value = at(key);
  const bool fits = value.is_number_integer() &&
                    !(value.is_number_unsigned() &&
                      value.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()});
  if (!fits) wrong(key, "an integer", value);
  return value.get<int64_t>();
}

int64_t AttributeReader::integer(std::string_view key, int64_t fallback) const {
  return find(key) == nullptr ? fallback : integer(key);
}

double AttributeReader::number(std::string_view key, double fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_number()) wrong(key, "a number", *value);
  return value->get<double>();
}

bool AttributeReader::boolean(std::string_view key, bool fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) wrong(key, "true or false", *value);
  return value->get<bool>();
}

std::string AttributeReader::text(std::string_view key) const {
  const Json& value = at(key);
  if (!value.is_string()) wrong(key, "a string", value);
  return value.get<std::string>();
}

std::string AttributeReader::text(std::string_view key, const std::string& fallback) const {
  return find(key) == nullptr ? fallback : text(key);
}

std::vector<int64_t> AttributeReader::integers(std::string_view key, size_t most) const {
  const Json* value = find(key);
  if (value == nullptr) return {};
  const bool numbers =
      value->is_array() && std::all_of(value->begin(), value->end(),
                                       [](const Json& each) { return each.is_number_integer(); });
  if (!numbers) wrong(key, "a list of integers", *value);
  if (value->size() > most) {
    fail(Code::limit, "{} of {}: {} entries; at most {}", key, kind_, value->size(), most);
  }
  return value->get<std::vector<int64_t>>();
}

const Json& AttributeReader::object(std::string_view key) const {
  const Json& value = at(key);
  if (!value.is_object()) wrong(key, "a table", value);
  return value;
}

}  // namespace sluice::lab
