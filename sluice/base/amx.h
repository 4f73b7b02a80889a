// Intel AMX: matrix products in tile registers, which a process has to ask the system for.
#pragma once

namespace sluice {

/// The CPU multiplies int8 tiles and the system lets this process use them (asked once),
/// and it is not limited to AVX2.
bool amx_int8_usable();

}  // namespace sluice
