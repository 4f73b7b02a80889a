// For tests: which Error a call throws.
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "sluice/base/error.h"

namespace sluice {

/// The Error that `call` throws; nothing when it throws none. Other exceptions pass through and
/// fail the test.
template <class Call>
std::optional<Error> error_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

/// An Error of that code, on one line, with `words` in its message. `what` names the case in a
/// table of them.
template <class Call>
void expect_error(Code code, const std::string& words, Call&& call, const std::string& what = "") {
  const std::optional<Error> error = error_of(call);
  if (!error) {
    ADD_FAILURE() << what << ": no Error was thrown; expected '" << words << "'";
    return;
  }
  EXPECT_EQ(code_name(error->code()), code_name(code)) << what << ": " << error->what();
  EXPECT_THAT(error->what(), ::testing::HasSubstr(words)) << what;
  EXPECT_THAT(error->what(), ::testing::Not(::testing::HasSubstr("\n"))) << what;
}

}  // namespace sluice

/// The same for one statement: EXPECT_ERROR(parse(x), Code::format, "byte 7").
#define EXPECT_ERROR(statement, code, text) \
  ::sluice::expect_error(code, text, [&] { (void)(statement); })
