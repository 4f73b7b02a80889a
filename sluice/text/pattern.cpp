#include "sluice/text/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <utility>

#include "sluice/base/error.h"
#include "sluice/text/unicode.h"

namespace sluice::text {
namespace {

constexpr size_t kLongestExpression = 16384;
// Per match. A tokenizer's pattern needs a few steps per character of one word; the longest run of
// spaces of a text of some megabytes stays below.
constexpr uint32_t kMatchLimit = 20'000'000;
constexpr uint32_t kHeapKib = 65536;

std::string message_of(int code) {
  PCRE2_UCHAR buffer[160];
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

/// Per thread: match data and a stack for compiled code.
struct Matcher {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 * 1024, 1024 * 1024, nullptr);
  Matcher() {
    if (data == nullptr || context == nullptr) {
      fail(Code::limit, "no memory for matching regular expressions");
    }
    pcre2_set_match_limit(context, kMatchLimit);
    pcre2_set_heap_limit(context, kHeapKib);
    if (stack != nullptr) {
      pcre2_jit_stack_assign(context, nullptr, stack);
    }
  }
  ~Matcher() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
  Matcher(const Matcher&) = delete;
  Matcher& operator=(const Matcher&) = delete;
};

}  // namespace

struct Pattern::Compiled {
  pcre2_code* code = nullptr;
  bool jit = false;
  std::string expression, what;
  ~Compiled() { pcre2_code_free(code); }
};

Pattern::Pattern() = default;
Pattern::Pattern(Pattern&&) noexcept = default;
Pattern& Pattern::operator=(Pattern&&) noexcept = default;
Pattern::~Pattern() = default;

Pattern Pattern::literal(std::string_view text) {
  Pattern pattern;
  pattern.literal_ = text;
  return text.empty() ? regex("", "an empty pattern") : std::move(pattern);
}

Pattern Pattern::regex(std::string_view expression, std::string_view what) {
  if (expression.size() > kLongestExpression) {
    fail(Code::limit, "{}: a regular expression of {} bytes; at most {} are allowed", what,
         expression.size(), kLongestExpression);
  }
  const std::string translated = translate_regex(expression, what);
  struct Context {
    pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
    ~Context() { pcre2_compile_context_free(context); }
  } compile;
  if (compile.context == nullptr) {
    fail(Code::limit, "{}: no memory for a regular expression", what);
  }
  pcre2_set_newline(compile.context, PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(compile.context, 50);
  Pattern pattern;
  pattern.compiled_ = std::make_unique<Compiled>();
  Compiled& compiled = *pattern.compiled_;
  compiled.expression = expression;
  compiled.what = what;
  int error = 0;
  PCRE2_SIZE where = 0;
  compiled.code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                                &error, &where, compile.context);
  if (compiled.code == nullptr) {
    fail(Code::format, "{}: the regular expression {} is wrong: {}", what, shown(expression),
         message_of(error));
  }
  compiled.jit = pcre2_jit_compile(compiled.code, PCRE2_JIT_COMPLETE) == 0;
  return pattern;
}

void Pattern::find(std::string_view text, std::vector<Stretch>& out) const {
  out.clear();
  size_t done = 0;
  const auto found = [&](size_t begin, size_t end) {
    if (begin != done) {
      out.push_back({done, begin, false});
    }
    out.push_back({begin, end, true});
    done = end;
  };
  if (compiled_ == nullptr) {
    for (size_t at = text.find(literal_); at != std::string_view::npos;
         at = text.find(literal_, done)) {
      found(at, at + literal_.size());
    }
  } else if (!text.empty()) {
    thread_local Matcher matcher;
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    PCRE2_SIZE* const bounds = pcre2_get_ovector_pointer(matcher.data);
    size_t from = 0, last = std::string_view::npos;  // where to look, where the last match ended
    while (from <= text.size()) {
      int result = PCRE2_ERROR_JIT_STACKLIMIT;
      if (compiled_->jit) {
        result = pcre2_jit_match(compiled_->code, subject, text.size(), from, 0, matcher.data,
                                 matcher.context);
      }
      if (result == PCRE2_ERROR_JIT_STACKLIMIT) {
        result = pcre2_match(compiled_->code, subject, text.size(), from,
                             PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, matcher.data, matcher.context);
      }
      if (result == PCRE2_ERROR_NOMATCH) {
        break;
      }
      if (result < 0) {
        fail(Code::limit, "{}: the regular expression {} gave up at byte {} of a text of {}: {}",
             compiled_->what, shown(compiled_->expression), from, text.size(), message_of(result));
      }
      const size_t begin = bounds[0], end = bounds[1];
      if (begin < from || end < begin || end > text.size()) {
        fail(Code::unsupported, "{}: the regular expression {} matches backwards", compiled_->what,
             shown(compiled_->expression));
      }
      from = end;
      if (begin == end) {
        from += end < text.size() ? utf8_size(text[end]) : 1;
        if (end == last) {
          continue;
        }
      }
      found(begin, end);
      last = end;
    }
  }
  if (done != text.size()) {
    out.push_back({done, text.size(), false});
  }
}

}  // namespace sluice::text
