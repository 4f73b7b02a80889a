#include "sluice/bundle/safetensors_header.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "sluice/base/error.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

// Types of the format that have no whole number of bytes per element, or none that we compute with.
constexpr std::string_view kKnownElsewhere[] = {"F4",          "F6_E2M3",     "F6_E3M2", "F8_E8M0",
                                                "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64"};

// Handler of nlohmann::json::sax_parse; throws Error at the first thing out of place.
class HeaderReader {
 public:
  HeaderReader(Header& header, const std::string& what, const ReadLimits& limits)
      : header_(header), what_(what), limits_(limits) {}

  bool null() { return unexpected("null"); }
  bool boolean(bool value) { return unexpected(value ? "true" : "false"); }
  bool number_integer(nlohmann::json::number_integer_t value) {
    return number(std::to_string(value));
  }
  bool number_float(nlohmann::json::number_float_t, const std::string& text) {
    return number(text);
  }
  bool binary(nlohmann::json::binary_t&) { return unexpected("binary data"); }

  bool number_unsigned(nlohmann::json::number_unsigned_t value) {
    constexpr auto kMost = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    if ((state_ == State::shape || state_ == State::offsets) && value > kMost)
      return number(std::to_string(value));
    if (state_ == State::shape) {
      if (entry_.shape.size() >= limits_.max_rank)
        fail(Code::limit, "{}: more than {} dimensions", place(), limits_.max_rank);
      entry_.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (state_ == State::offsets) {
      if (offsets_ == 2) fail(Code::format, "{}: expected 2 numbers, found more", place());
      (offsets_++ == 0 ? entry_.begin : entry_.end) = value;
      return true;
    }
    return unexpected(std::to_string(value));
  }

  bool string(std::string& value) {
    if (state_ == State::metadata_value) {
      if (!header_.metadata.emplace(field_, std::move(value)).second)
        fail(Code::format, "{}: the key appears twice", place());
      state_ = State::metadata;
      return true;
    }
    if (state_ == State::dtype) {
      const auto dtype = dtype_from_name(value);
      if (!dtype) {
        for (std::string_view known : kKnownElsewhere)
          if (known == value)
            fail(Code::unsupported, "{}: element type {} is not supported", place(), value);
        fail(Code::format, "{}: unknown element type '{}'; expected one like F32, BF16, I8",
             place(), printable(value, 40));
      }
      entry_.dtype = *dtype;
      state_ = State::tensor;
      return true;
    }
    return unexpected("text");
  }

  bool start_object(size_t) {
    switch (state_) {
      case State::start:
        state_ = State::top;
        return true;
      case State::top_value:
        if (in_metadata_) {
          state_ = State::metadata;
        } else {
          state_ = State::tensor;
          seen_ = 0;
        }
        return true;
      default:
        return unexpected("an object");
    }
  }

  bool key(std::string& name) {
    field_.clear();
    if (state_ == State::top) {
      in_metadata_ = name == "__metadata__";
      if (in_metadata_) {
        if (metadata_seen_)
          fail(Code::format, "{}: header field '__metadata__' appears twice", what_);
        metadata_seen_ = true;
      } else {
        if (header_.tensors.size() >= limits_.max_tensors)
          fail(Code::limit, "{}: more than {} tensors", what_, limits_.max_tensors);
        if (!names_.insert(name).second)
          fail(Code::format, "{}: tensor '{}' appears twice in the header", what_, printable(name));
        entry_ = HeaderEntry{};
        entry_.name = std::move(name);
        offsets_ = 0;
      }
      state_ = State::top_value;
    } else if (state_ == State::metadata) {
      field_ = std::move(name);
      state_ = State::metadata_value;
    } else {
      field_ = std::move(name);
      const int bit = field_ == "dtype"          ? 1
                      : field_ == "shape"        ? 2
                      : field_ == "data_offsets" ? 4
                                                 : 0;
      if (bit == 0)
        fail(Code::format, "{}: unknown field; expected dtype, shape and data_offsets", place());
      if (seen_ & bit) fail(Code::format, "{}: the field appears twice", place());
      seen_ |= bit;
      state_ = bit == 1 ? State::dtype : bit == 2 ? State::shape_start : State::offsets_start;
    }
    return true;
  }

  bool end_object() {
    if (state_ == State::tensor) {
      field_.clear();
      for (const auto& [bit, name] : {std::pair{1, "dtype"}, {2, "shape"}, {4, "data_offsets"}})
        if (!(seen_ & bit)) fail(Code::format, "{}: field '{}' is not there", place(), name);
      header_.tensors.push_back(std::move(entry_));
      state_ = State::top;
    } else {
      state_ = state_ == State::metadata ? State::top : State::done;
    }
    return true;
  }

  bool start_array(size_t) {
    if (state_ == State::shape_start) {
      state_ = State::shape;
    } else if (state_ == State::offsets_start) {
      state_ = State::offsets;
    } else {
      return unexpected("a list");
    }
    return true;
  }

  bool end_array() {
    if (state_ == State::offsets && offsets_ != 2)
      fail(Code::format, "{}: expected 2 numbers, found {}", place(), offsets_);
    state_ = State::tensor;
    return true;
  }

  bool parse_error(size_t byte, const std::string&, const nlohmann::json::exception& error) {
    fail(Code::format,
         "{}: header is not valid JSON at byte {}: {}. The file may be damaged: fetch it again",
         what_, 7 + byte, json_problem(error.what()));
  }

 private:
  enum class State {
    start,
    top,
    top_value,
    metadata,
    metadata_value,
    tensor,
    dtype,
    shape_start,
    shape,
    offsets_start,
    offsets,
    done
  };

  std::string place() const {
    if (in_metadata_)
      return fmt::format("{}: header field '__metadata__'{}", what_,
                         field_.empty() ? "" : ", key '" + printable(field_) + "'");
    return fmt::format("{}: tensor '{}'{}", what_, printable(entry_.name),
                       field_.empty() ? "" : ", field '" + printable(field_) + "'");
  }

  bool number(const std::string& text) {
    if (state_ == State::shape || state_ == State::offsets)
      fail(Code::format, "{}: {} is not a whole number from 0 to 2^63-1", place(),
           printable(text, 40));
    return unexpected(text);
  }

  bool unexpected(const std::string& found) {
    const std::string shown = printable(found, 40);
    switch (state_) {
      case State::start:
        fail(Code::format, "{}: header at byte 8: expected a JSON object, found {}", what_, shown);
      case State::top_value:
        fail(Code::format, "{}: expected an object, found {}", place(), shown);
      case State::metadata_value:
      case State::dtype:
        fail(Code::format, "{}: expected text, found {}", place(), shown);
      case State::shape_start:
      case State::offsets_start:
        fail(Code::format, "{}: expected a list of numbers, found {}", place(), shown);
      default:
        fail(Code::format, "{}: expected a whole number, found {}", place(), shown);
    }
  }

  Header& header_;
  const std::string& what_;
  const ReadLimits& limits_;
  State state_ = State::start;
  bool in_metadata_ = false, metadata_seen_ = false;
  int seen_ = 0, offsets_ = 0;
  std::string field_;
  HeaderEntry entry_;
  std::unordered_set<std::string> names_;
};

}  // namespace

Header parse_header(std::string_view json, const std::string& what, const ReadLimits& limits) {
  if (json.empty() || json[0] != '{')
    fail(Code::format, "{}: header at byte 8: expected '{{', found {}; not a safetensors file",
         what, json.empty() ? "nothing" : "'" + printable(json.substr(0, 1)) + "'");
  // nlohmann takes a zero byte for the end of the text and would ignore what follows.
  if (const size_t zero = json.find('\0'); zero != json.npos)
    fail(Code::format, "{}: zero byte in the header at byte {}; only spaces may pad it", what,
         8 + zero);
  Header header;
  HeaderReader reader(header, what, limits);
  nlohmann::json::sax_parse(json.begin(), json.end(), &reader);
  return header;
}

}  // namespace sluice::bundle
