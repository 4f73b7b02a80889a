#include "sluice/base/path_pattern.h"

#include <algorithm>
#include <cctype>
#include <numeric>

namespace sluice {
namespace {

std::vector<std::string_view> split_segments(std::string_view path) {
  std::vector<std::string_view> segments;
  if (path.empty()) {
    return segments;
  }
  for (size_t begin = 0;;) {
    const size_t dot = path.find('.', begin);
    segments.push_back(path.substr(begin, dot == std::string_view::npos ? dot : dot - begin));
    if (dot == std::string_view::npos) {
      return segments;
    }
    begin = dot + 1;
  }
}

// Greedy with one step back: linear for patterns with one star, never worse than the product of the
// lengths.
bool segment_matches(std::string_view pattern, std::string_view text) {
  size_t p = 0, t = 0, star = std::string_view::npos, resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') {
    ++p;
  }
  return p == pattern.size();
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) {
    c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  return result;
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> previous(b.size() + 1), row(b.size() + 1), before;
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    before = previous;
    previous = row;
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] =
          std::min({previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before[j - 2] + 1);  // two letters swapped count once
      }
    }
  }
  return row[b.size()];
}

}  // namespace

bool path_matches(std::string_view pattern, std::string_view path) {
  const std::vector<std::string_view> parts = split_segments(pattern);
  const std::vector<std::string_view> segments = split_segments(path);
  // reached[s]: the parts seen so far match the first s segments.
  std::vector<char> reached(segments.size() + 1, 0), next;
  reached[0] = 1;
  for (const std::string_view part : parts) {
    next.assign(segments.size() + 1, 0);
    for (size_t s = 0; s <= segments.size(); ++s) {
      if (part == "**") {
        next[s] = reached[s] || (s > 0 && next[s - 1]);
      } else {
        next[s] = s > 0 && reached[s - 1] && segment_matches(part, segments[s - 1]);
      }
    }
    reached.swap(next);
  }
  return reached[segments.size()];
}

std::string join_path(std::string_view parent, std::string_view name) {
  std::string result(parent);
  if (!parent.empty() && !name.empty()) {
    result += '.';
  }
  result += name;
  return result;
}

std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates) {
  constexpr size_t kLongest = 256;  // the distance is quadratic; no real name is longer
  if (name.empty() || name.size() > kLongest) {
    return {};
  }
  const std::string wanted = lower(name);
  const size_t near = std::max<size_t>(1, (wanted.size() + 1) / 3);
  std::string best;
  size_t best_distance = near + 1;
  for (const std::string& candidate : candidates) {
    if (candidate.size() > kLongest) {
      continue;
    }
    const std::string found = lower(candidate);
    const size_t distance = edit_distance(wanted, found);
    if (distance < best_distance && distance < std::max(wanted.size(), found.size())) {
      best_distance = distance;
      best = candidate;
    }
  }
  if (best.empty() && wanted.size() >= 3) {  // an abbreviation: "fashion" for "fashion-mnist"
    for (const std::string& candidate : candidates) {
      if (lower(candidate).starts_with(wanted) &&
          (best.empty() || candidate.size() < best.size())) {
        best = candidate;
      }
    }
  }
  return best;
}

}  // namespace sluice
