#include <algorithm>
#include <utility>

#include "sluice/base/error.h"
#include "sluice/text/model.h"
#include "sluice/text/unicode.h"

namespace sluice::text {
namespace {

/// The longest token that fits, again and again; a word that cannot be covered is unknown as a
/// whole.
class WordPiece : public Model {
 public:
  WordPiece(Vocabulary vocabulary, std::string unknown, std::string prefix, int64_t longest_word)
      : unknown_text_(std::move(unknown)), prefix_(std::move(prefix)), longest_word_(longest_word) {
    vocabulary_ = std::move(vocabulary);
    unknown_ = vocabulary_.find(unknown_text_);
  }

  void tokenize(std::string_view word, ModelScratch& scratch,
                std::vector<Token>& out) const override {
    const size_t first = out.size();
    bool covered = static_cast<int64_t>(count_code_points(word)) <= longest_word_;
    for (size_t begin = 0; covered && begin < word.size();) {
      scratch.buffer = begin > 0 ? prefix_ : std::string();
      const size_t prefix = scratch.buffer.size();
      // No token is longer than the longest, so longer candidates need no look.
      size_t end = std::min(word.size(), begin + vocabulary_.longest());
      while (end < word.size() && end > begin && is_utf8_continuation(word[end])) {
        --end;
      }
      scratch.buffer += word.substr(begin, end - begin);
      int32_t id = -1;
      while (end > begin) {
        id = vocabulary_.find(std::string_view(scratch.buffer).substr(0, prefix + end - begin));
        if (id >= 0) {
          break;
        }
        do {
          --end;
        } while (end > begin && is_utf8_continuation(word[end]));
      }
      covered = id >= 0;
      out.push_back({id, static_cast<uint32_t>(begin), static_cast<uint32_t>(end)});
      begin = end;
    }
    if (covered) {
      return;
    }
    if (unknown_ < 0) {
      fail(Code::missing,
           "WordPiece: the unknown token {} is not in the vocabulary, and {} needs it",
           shown(unknown_text_), shown(word));
    }
    out.resize(first);
    out.push_back({unknown_, 0, static_cast<uint32_t>(word.size())});
  }

 private:
  std::string unknown_text_, prefix_;
  int64_t longest_word_;
  int32_t unknown_;
};

class WordLevel : public Model {
 public:
  WordLevel(Vocabulary vocabulary, std::string unknown) : unknown_text_(std::move(unknown)) {
    vocabulary_ = std::move(vocabulary);
    unknown_ = vocabulary_.find(unknown_text_);
  }
  void tokenize(std::string_view word, ModelScratch&, std::vector<Token>& out) const override {
    int32_t id = vocabulary_.find(word);
    id = id < 0 ? unknown_ : id;
    if (id < 0) {
      fail(Code::missing,
           "WordLevel: the unknown token {} is not in the vocabulary, and {} needs it",
           shown(unknown_text_), shown(word));
    }
    out.push_back({id, 0, static_cast<uint32_t>(word.size())});
  }

 private:
  std::string unknown_text_;
  int32_t unknown_;
};

}  // namespace

std::unique_ptr<Model> make_word_piece(Vocabulary vocabulary, std::string unknown,
                                       std::string prefix, int64_t longest_word) {
  return std::make_unique<WordPiece>(std::move(vocabulary), std::move(unknown), std::move(prefix),
                                     longest_word);
}

std::unique_ptr<Model> make_word_level(Vocabulary vocabulary, std::string unknown) {
  return std::make_unique<WordLevel>(std::move(vocabulary), std::move(unknown));
}

}  // namespace sluice::text
