#include "cli/lab/text_samples.h"

#include <algorithm>
#include <string_view>
#include <vector>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/text/tokenizer.h"

namespace sluice::cli {
namespace {

constexpr size_t kMostBytes = size_t{256} << 20;

text::Tokenizer tokenizer_of(const lab::Model& model, const std::string& option) {
  if (model.tokenizer.empty()) {
    fail(Code::missing,
         "{}: the model has no tokenizer; import it from a folder with tokenizer.json", option);
  }
  return text::Tokenizer::parse(model.tokenizer, "the model's tokenizer");
}

void check_ids(const std::vector<int32_t>& ids, const lab::Model& model) {
  const int64_t vocabulary = model.root->vocabulary();
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocabulary) {
      fail(Code::shape, "the tokenizer gives the id {}; the model has ids below {}", id,
           vocabulary);
    }
  }
}

}  // namespace

TextSamples load_runs(const std::string& path, const lab::Model& model, int64_t limit,
                      int64_t tokens, const std::string& option) {
  const auto ids = tokenizer_of(model, option)
                       .encode(read_text_file(path, kMostBytes), /*add_special_tokens=*/false);
  check_ids(ids, model);
  const int64_t count = std::min(limit, static_cast<int64_t>(ids.size()) / tokens);
  if (count == 0) {
    fail(Code::usage, "{} {}: {} tokens; one run of the model takes {}", option, path, ids.size(),
         tokens);
  }
  TextSamples samples{at::empty({count, tokens}), {}};
  std::copy_n(ids.begin(), count * tokens, samples.ids.data_ptr<float>());
  return samples;
}

TextSamples load_lines(const std::string& path, const lab::Model& model, int64_t limit,
                       int64_t tokens, const std::string& option) {
  const text::Tokenizer tokenizer = tokenizer_of(model, option);
  const std::string all = read_text_file(path, kMostBytes);
  std::vector<std::vector<int32_t>> lines;
  for (size_t begin = 0; begin < all.size() && static_cast<int64_t>(lines.size()) < limit;) {
    const size_t end = std::min(all.find('\n', begin), all.size());
    const std::string_view line = std::string_view(all).substr(begin, end - begin);
    begin = end + 1;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    std::vector<int32_t> ids = tokenizer.encode(line);
    if (static_cast<int64_t>(ids.size()) > tokens) {
      const int32_t last = ids.back();
      ids.resize(static_cast<size_t>(tokens));
      if (tokenizer.is_special(last)) ids.back() = last;
    }
    check_ids(ids, model);
    if (!ids.empty()) lines.push_back(std::move(ids));
  }
  if (lines.empty()) fail(Code::usage, "{} {}: no line with text in it", option, path);
  size_t longest = 0;
  for (const auto& line : lines) longest = std::max(longest, line.size());
  const auto count = static_cast<int64_t>(lines.size());
  TextSamples samples{at::zeros({count, static_cast<int64_t>(longest)}),
                      at::empty({count}, at::kLong)};
  for (int64_t i = 0; i < count; ++i) {
    const auto& line = lines[static_cast<size_t>(i)];
    std::copy(line.begin(), line.end(),
              samples.ids.data_ptr<float>() + i * static_cast<int64_t>(longest));
    samples.lengths.data_ptr<int64_t>()[i] = static_cast<int64_t>(line.size());
  }
  return samples;
}

}  // namespace sluice::cli
