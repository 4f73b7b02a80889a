// Text that needs no download, for scale tiny.
#pragma once
#include <string>
#include <string_view>

namespace sluice::recipes {

/// Writes `files` documents of `lines` sentences each below `folder` and returns their folder. A
/// sentence is `pattern` (of fmt) with three numbers below 23 in it, the first at random, the
/// others following from it: there is something to learn. The same every time.
std::string made_up_text(const std::string& folder, std::string_view pattern, int files, int lines);

inline constexpr std::string_view kMadeUpEnglish = "the cat of house {} saw {} mice and {} birds\n";
inline constexpr std::string_view kMadeUpCode =
    "def f{}(x):\n    y = x + {}\n    return y * {}\n\n";

}  // namespace sluice::recipes
