// Retrieval test sets: texts to search, queries, and which text answers which query.
//
// A folder as the BEIR benchmark (Thakur et al. 2021) lays it out:
//   corpus.jsonl   {"_id": "d1", "title": "may be absent", "text": "..."} a line
//   queries.jsonl  {"_id": "q1", "text": "..."} a line
//   qrels.tsv      query id, document id, grade (a whole number, 0: not relevant), between tabs;
//                  a first line whose third field is no number is a heading. qrels/test.tsv
//                  serves too.
// Other keys of the JSON lines are ignored, and so are empty lines.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace sluice::data {

struct RetrievalJudgement {
  int64_t query = 0, document = 0;  ///< indices
  int64_t grade = 1;
};

struct RetrievalSet {
  std::vector<std::string> document_ids, documents;  ///< title and text with a space between
  std::vector<std::string> query_ids, queries;
  std::vector<RetrievalJudgement> judgements;
};

/// Throws Error{missing} for an absent file, Error{format} naming file and line for contents that
/// are otherwise than above: broken JSON, no or doubled ids, judgements of ids that are not there
/// or twice of the same pair, no relevant document at all.
RetrievalSet read_retrieval_set(const std::string& folder);

/// Texts with a label each, for classifiers: {"text": "...", "label": "name"} a line. Throws
/// Error{missing, format} as above.
struct LabelledTexts {
  std::vector<std::string> texts, labels;
};
LabelledTexts read_labelled_texts(const std::string& path);

}  // namespace sluice::data
