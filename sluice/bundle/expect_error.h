#pragma once
#include "sluice/base/test_error.h"
namespace sluice::bundle::testing {
using sluice::expect_error;
}
