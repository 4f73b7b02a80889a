// A JSON object from a model's folder, its fields checked as they are read. null is as good as
// absent. All throw Error{config} naming file, field, expected and found.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sluice/base/json_fwd.h"

namespace sluice::bundle::hf {

/// A range that a number must lie in.
struct Range {
  double least, most;
};
inline constexpr int64_t kMaxSize = 1 << 24;  ///< of any dimension; ids are exact in f32 up to here

class Config {
 public:
  static Config read(const std::string& path);
  Config(Json json, std::string what);

  const std::string& what() const { return what_; }
  const Json& json() const { return *json_; }
  bool has(const std::string& name) const;
  int64_t integer(const std::string& name, int64_t least = 1, int64_t most = kMaxSize) const;
  int64_t integer_or(const std::string& name, int64_t fallback, int64_t least = 1,
                     int64_t most = kMaxSize) const;
  double number(const std::string& name, Range range) const;
  double number_or(const std::string& name, double fallback, Range range) const;
  bool flag_or(const std::string& name, bool fallback) const;
  std::string text_or(const std::string& name, const std::string& fallback) const;
  /// A list of integers, or one integer; empty when absent.
  std::vector<int64_t> integers(const std::string& name) const;
  /// A list of numbers; empty when absent.
  std::vector<double> numbers(const std::string& name, Range range) const;
  std::vector<std::string> texts(const std::string& name) const;
  /// An object; nothing when absent.
  std::optional<Config> object(const std::string& name) const;
  /// Fields have other names in the file that was read: messages use those.
  void set_aliases(std::map<std::string, std::string> names) { aliases_ = std::move(names); }
  /// "<file>: field 'name'", or "<file>: key 'alias'".
  std::string field(const std::string& name) const;

 private:
  const Json* find(const std::string& name) const;
  std::shared_ptr<const Json> json_;
  std::string what_, inside_;
  std::map<std::string, std::string> aliases_;
};

/// A name of a file or folder directly below another: no separator, no "..". Throws Error{config}.
void require_plain_name(const std::string& name, const std::string& what);

}  // namespace sluice::bundle::hf
