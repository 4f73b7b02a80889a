#include "sluice/data/retrieval.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/base/file.h"
#include "sluice/base/temp_directory.h"
#include "sluice/base/test_error.h"

namespace sluice::data {
namespace retrieval_test {

using testing::ElementsAre;

constexpr char kCorpus[] =
    "{\"_id\": \"d1\", \"title\": \"Cats\", \"text\": \"purr\", \"url\": 3}\n"
    "\n{\"_id\": \"d2\", \"text\": \"Dogs bark\"}\r\n";
constexpr char kQueries[] = "{\"_id\": \"q1\", \"text\": \"who barks\"}\n";
constexpr char kQrels[] = "query-id\tcorpus-id\tscore\nq1\td2\t2\nq1\td1\t0\n";

class Retrieval : public testing::Test {
 protected:
  void SetUp() override { write(kCorpus, kQueries, kQrels); }
  void write(const std::string& corpus, const std::string& queries, const std::string& qrels) {
    write_text_file(directory / "corpus.jsonl", corpus);
    write_text_file(directory / "queries.jsonl", queries);
    write_text_file(directory / "qrels.tsv", qrels);
  }
  TempDirectory directory;
};

TEST_F(Retrieval, ReadsTextsAndJudgements) {
  const RetrievalSet set = read_retrieval_set(directory.path());
  EXPECT_THAT(set.document_ids, ElementsAre("d1", "d2"));
  EXPECT_THAT(set.documents, ElementsAre("Cats purr", "Dogs bark"));
  EXPECT_THAT(set.queries, ElementsAre("who barks"));
  ASSERT_EQ(set.judgements.size(), 2u);
  EXPECT_EQ(set.judgements[0].document, 1);
  EXPECT_EQ(set.judgements[0].grade, 2);
  write(kCorpus, kQueries, "q1\td1\t1");
  EXPECT_EQ(read_retrieval_set(directory.path()).judgements.size(), 1u);
}

TEST_F(Retrieval, RefusesMalformedFilesNamingTheLine) {
  struct Case {
    std::string corpus, queries, qrels, words;
  };
  const std::vector<Case> cases{
      {"[1]\n", kQueries, kQrels, "corpus.jsonl: line 1: expected an object"},
      {"{\"_id\": \"d1\"\n", kQueries, kQrels, "corpus.jsonl: line 1"},
      {"{\"text\": \"x\"}", kQueries, kQrels, "key '_id': expected text, found nothing"},
      {"{\"_id\": 3, \"text\": \"x\"}", kQueries, kQrels, "found number"},
      {"{\"_id\": \"d1\", \"title\": 3, \"text\": \"x\"}", kQueries, kQrels, "key 'title'"},
      {std::string(kCorpus) + "{\"_id\": \"d1\", \"text\": \"again\"}", kQueries, kQrels,
       "line 4: the id 'd1' was there before"},
      {"", kQueries, kQrels, "corpus.jsonl: no line"},
      {kCorpus, kQueries, "q1\td2\n", "qrels.tsv: line 1: 2 fields"},
      {kCorpus, kQueries, "q1\td2\t1x\n", "grade '1x'"},
      {kCorpus, kQueries, "q1\td2\t-1\n", "grade '-1'"},
      {kCorpus, kQueries, "q1\td2\t99999999999999999999\n", "grade"},
      {kCorpus, kQueries, "q9\td2\t1\n", "no query 'q9'"},
      {kCorpus, kQueries, "q1\td9\t1\n", "no document 'd9'"},
      {kCorpus, kQueries, "q1\td2\t1\nq1\td2\t1\n", "line 2: query 'q1' and document 'd2' were"},
      {kCorpus, kQueries, "q1\td2\t0\n", "no relevant document"},
  };
  for (const Case& c : cases) {
    write(c.corpus, c.queries, c.qrels);
    expect_error(
        Code::format, c.words, [&] { read_retrieval_set(directory.path()); }, c.words);
  }
  EXPECT_ERROR(read_retrieval_set(directory / "none"), Code::missing, "corpus.jsonl");
}

TEST_F(Retrieval, ReadsLabelledTexts) {
  const std::string path = directory / "texts.jsonl";
  write_text_file(path, "{\"text\": \"good\", \"label\": \"yes\"}\n");
  EXPECT_THAT(read_labelled_texts(path).labels, ElementsAre("yes"));
  write_text_file(path, "{\"text\": \"good\", \"label\": 1}\n");
  EXPECT_ERROR(read_labelled_texts(path), Code::format, "key 'label'");
}

}  // namespace retrieval_test
}  // namespace sluice::data
