#pragma once
#include "sluice/base/temp_directory.h"
namespace sluice::bundle::testing {
using TempFolder = TempDirectory;
}
