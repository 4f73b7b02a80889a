// Asserts which Error a statement throws. For tests only.
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "sluice/base/error.h"

namespace sluice {

/// The Error that `work` throws; nothing when it throws none. Other exceptions pass through and
/// fail the test.
template <class Work>
std::optional<Error> error_of(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

}  // namespace sluice

/// EXPECT_ERROR(parse(x), Code::format, "byte 7"): an Error of that code whose message contains the
/// text.
#define EXPECT_ERROR(statement, expected_code, text)                                         \
  do {                                                                                       \
    const auto sluice_error = ::sluice::error_of([&] { (void)(statement); });                \
    ASSERT_TRUE(sluice_error.has_value()) << #statement << " threw no Error";                \
    EXPECT_EQ(::sluice::code_name(sluice_error->code()), ::sluice::code_name(expected_code)) \
        << sluice_error->what();                                                             \
    EXPECT_THAT(std::string(sluice_error->what()), ::testing::HasSubstr(text));              \
  } while (false)
