// Which vector instructions the engine may use.
#pragma once

namespace sluice::engine {

/// Makes the engine and oneDNN compute, and describe_machine() and the probes of the machine speak,
/// as on a processor with AVX2 alone (no AVX-512, VNNI, AMX), for the rest of the process. To be
/// called before the engine's first use. Throws Error{unsupported} on a processor without AVX2,
/// Error{usage} when oneDNN has been used already.
void limit_to_avx2();

}  // namespace sluice::engine
