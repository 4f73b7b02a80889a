#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "sluice/base/error.h"
#include "sluice/text/model.h"
#include "sluice/text/unicode.h"

namespace sluice::text {
namespace {

constexpr double kUnknownPenalty = 10;
constexpr size_t kLongestPiece = 4096, kMostBytes = size_t{1} << 24;

class Unigram : public Model {
 public:
  Unigram(Vocabulary vocabulary, std::vector<double> scores, int32_t unknown, bool byte_fallback,
          const std::string& what)
      : scores_(std::move(scores)), unknown_(unknown), byte_fallback_(byte_fallback), what_(what) {
    vocabulary_ = std::move(vocabulary);
    if (unknown_ >= static_cast<int64_t>(scores_.size())) {
      fail(Code::config, "{}: 'unk_id' is {} in a vocabulary of {} tokens", what, unknown_,
           scores_.size());
    }
    if (vocabulary_.longest() > kLongestPiece) {
      fail(Code::limit, "{}: a token of {} bytes; at most {} are allowed", what,
           vocabulary_.longest(), kLongestPiece);
    }
    if (vocabulary_.bytes() > kMostBytes) {
      fail(Code::limit, "{}: {} bytes of tokens; at most {} are allowed", what, vocabulary_.bytes(),
           kMostBytes);
    }
    double lowest = std::numeric_limits<double>::infinity();
    int32_t nodes = 1;
    for (size_t id = 0; id < scores_.size(); ++id) {
      if (!std::isfinite(scores_[id])) {
        fail(Code::numeric, "{}: the score of token {} is not finite", what, id);
      }
      lowest = std::min(lowest, scores_[id]);
      const std::string_view token = vocabulary_.token(static_cast<int32_t>(id));
      int32_t node = 0;
      for (const char c : token) {
        const auto byte = static_cast<unsigned char>(c);
        const PairTable::Value* found = trie_.find(node, byte);
        if (found == nullptr) {
          if (nodes == std::numeric_limits<int32_t>::max()) {
            fail(Code::limit, "{}: the vocabulary is too large", what);
          }
          trie_.set(node, byte, {nodes, -1});
          node = nodes++;
        } else {
          node = found->first;
        }
      }
      if (!token.empty()) {
        // The last of equal tokens counts.
        int32_t parent = 0;
        for (size_t i = 0; i + 1 < token.size(); ++i) {
          parent = trie_.find(parent, static_cast<unsigned char>(token[i]))->first;
        }
        trie_.set(parent, static_cast<unsigned char>(token.back()),
                  {node, vocabulary_.find(token)});
      }
    }
    unknown_score_ = lowest - kUnknownPenalty;
    for (unsigned byte = 0; byte < 256; ++byte) {
      bytes_[byte] = vocabulary_.find(fmt::format("<0x{:02X}>", byte));
    }
  }

  size_t size() const override { return scores_.size(); }

  void tokenize(std::string_view word, ModelScratch& scratch,
                std::vector<Token>& out) const override {
    auto& nodes = scratch.nodes;  // per byte: the best way to get there
    nodes.assign(word.size() + 1, {0, 0, -1});
    const auto offer = [&](size_t begin, size_t end, double score, int32_t id) {
      if (nodes[end].begin < 0 || score > nodes[end].score) {
        nodes[end] = {score, id, static_cast<int64_t>(begin)};
      }
    };
    for (size_t at = 0; at < word.size();) {
      const size_t size = utf8_size(word[at]);
      const double so_far = nodes[at].score;
      bool single = false;
      int32_t node = 0;
      for (size_t end = at; end < word.size();) {
        const PairTable::Value* next = trie_.find(node, static_cast<unsigned char>(word[end]));
        if (next == nullptr) {
          break;
        }
        ++end;
        node = next->first;
        if (next->second >= 0) {
          offer(at, end, scores_[static_cast<size_t>(next->second)] + so_far, next->second);
          single |= end - at == size;
        }
      }
      if (!single) {
        if (unknown_ < 0) {
          fail(Code::missing, "{}: no token for {} and no 'unk_id'", what_,
               shown(word.substr(at, size)));
        }
        offer(at, at + size, unknown_score_ + so_far, unknown_);
      }
      at += size;
    }
    // Backwards; neighbours that are unknown become one piece.
    const size_t first = out.size();
    for (size_t end = word.size(); end > 0;) {
      size_t begin = static_cast<size_t>(nodes[end].begin);
      const bool unknown = nodes[end].id == unknown_;
      while (unknown && begin > 0 && nodes[begin].id == unknown_) {
        begin = static_cast<size_t>(nodes[begin].begin);
      }
      put(word, begin, end, out);
      end = begin;
    }
    std::reverse(out.begin() + static_cast<std::ptrdiff_t>(first), out.end());
  }

 private:
  /// In reverse order.
  void put(std::string_view word, size_t begin, size_t end, std::vector<Token>& out) const {
    const auto token = [&](int32_t id) {
      out.push_back({id, static_cast<uint32_t>(begin), static_cast<uint32_t>(end)});
    };
    const std::string_view piece = word.substr(begin, end - begin);
    if (const int32_t id = vocabulary_.find(piece); id >= 0) {
      return token(id);
    }
    if (byte_fallback_ && std::all_of(piece.begin(), piece.end(), [&](char c) {
          return bytes_[static_cast<unsigned char>(c)] >= 0;
        })) {
      for (size_t i = piece.size(); i-- > 0;) {
        token(bytes_[static_cast<unsigned char>(piece[i])]);
      }
      return;
    }
    if (unknown_ < 0) {
      fail(Code::missing, "{}: no token for {} and no 'unk_id'", what_, shown(piece));
    }
    token(unknown_);
  }

  std::vector<double> scores_;
  int32_t unknown_;
  bool byte_fallback_;
  std::string what_;
  double unknown_score_ = 0;
  PairTable trie_;  // (node, byte) -> node, token or -1
  std::array<int32_t, 256> bytes_{};
};

}  // namespace

std::unique_ptr<Model> make_unigram(Vocabulary vocabulary, std::vector<double> scores,
                                    int32_t unknown, bool byte_fallback, const std::string& what) {
  return std::make_unique<Unigram>(std::move(vocabulary), std::move(scores), unknown, byte_fallback,
                                   what);
}

}  // namespace sluice::text
