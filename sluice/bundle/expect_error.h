// For tests: a call must throw Error with a code and words in its message, on one line.
#pragma once
#include <gmock/gmock.h>

#include <string>

#include "sluice/base/error.h"

namespace sluice::bundle::testing {

template <class F>
void expect_error(Code code, const std::string& words, F&& call, const std::string& what = "") {
  try {
    call();
    ADD_FAILURE() << what << ": nothing was thrown; expected '" << words << "'";
  } catch (const Error& error) {
    EXPECT_EQ(code_name(error.code()), code_name(code)) << what << ": " << error.what();
    EXPECT_THAT(error.what(), ::testing::HasSubstr(words)) << what;
    EXPECT_THAT(error.what(), ::testing::Not(::testing::HasSubstr("\n"))) << what;
  }
}

}  // namespace sluice::bundle::testing
