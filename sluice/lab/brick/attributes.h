// Reading a brick's attributes: strict about keys, types and ranges, because the text may come from
// a file. Messages start with the key, so that make_brick can put the place in the spec before
// them.
#pragma once
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "sluice/base/error.h"
#include "sluice/base/json_fwd.h"

namespace sluice::lab {

inline constexpr int64_t kMaxChannels = 1'000'000;
inline constexpr int64_t kMaxElements = int64_t{1} << 33;  ///< of one tensor, and of one network

/// Throws Error{config} naming `key` and `kind` unless low <= value <= high.
int64_t require_range(int64_t value, int64_t low, int64_t high, std::string_view key,
                      std::string_view kind);
double require_range(double value, double low, double high, std::string_view key,
                     std::string_view kind);
/// Throws Error{limit} when the product exceeds kMaxElements.
void require_elements(std::initializer_list<int64_t> sizes, std::string_view key,
                      std::string_view kind);

class AttributeReader {
 public:
  /// Throws Error{config} when `attributes` is no object or has a key outside `known`.
  AttributeReader(const Json& attributes, std::string_view kind,
                  std::initializer_list<std::string_view> known);
  int64_t integer(std::string_view key) const;
  int64_t integer(std::string_view key, int64_t fallback) const;
  double number(std::string_view key, double fallback) const;
  bool boolean(std::string_view key, bool fallback) const;
  std::string text(std::string_view key) const;
  std::string text(std::string_view key, const std::string& fallback) const;
  /// A list of integers; empty when absent. At most `most` of them.
  std::vector<int64_t> integers(std::string_view key, size_t most) const;
  /// An object; throws when absent.
  const Json& object(std::string_view key) const;

 private:
  const Json* find(std::string_view key) const;
  const Json& at(std::string_view key) const;
  [[noreturn]] void wrong(std::string_view key, std::string_view expected, const Json& found) const;
  const Json& attributes_;
  std::string kind_;
};

}  // namespace sluice::lab
