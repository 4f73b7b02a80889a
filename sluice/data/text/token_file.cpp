#include "sluice/data/text/token_file.h"

#include <bit>
#include <cstring>
#include <optional>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"

namespace sluice::data {
namespace token_file {

struct Header {
  char magic[8];
  uint32_t version, id_bytes;
  uint64_t train, held_out, description_bytes, description_hash, ids_hash, header_hash;
};

}  // namespace token_file
namespace {

using token_file::Header;

static_assert(std::endian::native == std::endian::little, "ids are mapped as they are stored");

constexpr std::string_view kMagic = "SLTOKENS";
constexpr uint32_t kVersion = 1;
constexpr size_t kHeaderBytes = 64;
constexpr uint64_t kLongestDescription = uint64_t{64} << 20;
constexpr int64_t kLargestVocabulary = int64_t{1} << 28;

static_assert(sizeof(Header) == kHeaderBytes);

uint64_t hash_of(const Header& header) {
  return xxhash64(std::as_bytes(std::span(&header, 1)).first(kHeaderBytes - sizeof(uint64_t)));
}

uint64_t padded(uint64_t bytes) { return (bytes + 7) / 8 * 8; }

int64_t count_field(const Json& json, const char* key, int64_t least, int64_t most,
                    const std::string& what) {
  const auto value = json_get<int64_t>(json, key, what);
  if (value < least || value > most)
    fail(Code::format, "{}: '{}' is {}; expected {} to {}", what, key, value, least, most);
  return value;
}

TokenInfo read_info(std::string_view text, const std::string& what) {
  const Json json = parse_json(text, what);
  constexpr int64_t kMost = int64_t{1} << 60;
  TokenInfo info;
  info.vocabulary = count_field(json, "vocabulary", 1, kLargestVocabulary, what);
  info.separator = count_field(json, "separator", 0, info.vocabulary - 1, what);
  info.tokenizer_json = json_get<std::string>(json, "tokenizer", what);
  info.source = json_get<std::string>(json, "source", what);
  const auto fingerprint = json_get<std::string>(json, "fingerprint", what);
  if (fingerprint.size() != 16 ||
      fingerprint.find_first_not_of("0123456789abcdef") != std::string::npos)
    fail(Code::format, "{}: 'fingerprint': expected 16 hexadecimal digits", what);
  info.fingerprint = std::stoull(fingerprint, nullptr, 16);
  info.train_documents = count_field(json, "train_documents", 0, kMost, what);
  info.held_out_documents = count_field(json, "held_out_documents", 0, kMost, what);
  info.train_bytes = count_field(json, "train_bytes", 0, kMost, what);
  info.held_out_bytes = count_field(json, "held_out_bytes", 0, kMost, what);
  return info;
}

}  // namespace

void TokenWriter::add(TextSplit split, std::span<const int32_t> ids, size_t bytes,
                      const std::string& name) {
  for (const int32_t id : ids) {
    if (id < 0 || id >= info_.vocabulary)
      fail(Code::format, "{}: token {} is outside the vocabulary of {}", name, id,
           info_.vocabulary);
  }
  const bool train = split == TextSplit::train;
  std::vector<uint32_t>& out = train ? train_ : held_out_;
  out.push_back(static_cast<uint32_t>(info_.separator));
  out.insert(out.end(), ids.begin(), ids.end());
  (train ? info_.train_documents : info_.held_out_documents) += 1;
  (train ? info_.train_bytes : info_.held_out_bytes) += static_cast<int64_t>(bytes);
}

int64_t TokenWriter::count(TextSplit split) const {
  return static_cast<int64_t>((split == TextSplit::train ? train_ : held_out_).size());
}

std::vector<std::byte> TokenWriter::bytes() const {
  std::string description = Json({{"vocabulary", info_.vocabulary},
                                  {"separator", info_.separator},
                                  {"tokenizer", info_.tokenizer_json},
                                  {"source", info_.source},
                                  {"fingerprint", fmt::format("{:016x}", info_.fingerprint)},
                                  {"train_documents", info_.train_documents},
                                  {"held_out_documents", info_.held_out_documents},
                                  {"train_bytes", info_.train_bytes},
                                  {"held_out_bytes", info_.held_out_bytes}})
                                .dump();
  Header header{};
  std::memcpy(header.magic, kMagic.data(), kMagic.size());
  header.version = kVersion;
  header.id_bytes = info_.vocabulary <= 65536 ? 2 : 4;
  header.train = train_.size();
  header.held_out = held_out_.size();
  header.description_bytes = description.size();
  header.description_hash = xxhash64(std::as_bytes(std::span(description)));
  description.resize(padded(description.size()), '\0');

  const size_t ids_at = kHeaderBytes + description.size();
  std::vector<std::byte> out(ids_at + (train_.size() + held_out_.size()) * header.id_bytes);
  std::byte* at = out.data() + ids_at;
  for (const auto* ids : {&train_, &held_out_}) {
    for (const uint32_t id : *ids) {
      std::memcpy(at, &id, header.id_bytes);
      at += header.id_bytes;
    }
  }
  header.ids_hash = xxhash64(std::span(out).subspan(ids_at));
  header.header_hash = hash_of(header);
  std::memcpy(out.data(), &header, sizeof header);
  std::memcpy(out.data() + kHeaderBytes, description.data(), description.size());
  return out;
}

void TokenWriter::write(const std::string& path) const {
  AtomicFile file(path);
  file.write(bytes());
  file.commit();
}

struct TokenFile::State {
  std::string what;
  std::optional<MappedFile> mapped;
  std::span<const std::byte> bytes;
  TokenInfo info;
  Header header;
  const std::byte* ids = nullptr;
};

TokenFile TokenFile::open(const std::string& path) {
  auto state = std::make_shared<State>();
  state->what = path;
  state->mapped = MappedFile::open(path);
  state->bytes = state->mapped->bytes();
  return checked(std::move(state));
}

TokenFile TokenFile::parse(std::span<const std::byte> bytes, const std::string& what) {
  auto state = std::make_shared<State>();
  state->what = what;
  state->bytes = bytes;
  return checked(std::move(state));
}

TokenFile TokenFile::checked(std::shared_ptr<State> state) {
  const std::string& what = state->what;
  const std::span<const std::byte> bytes = state->bytes;
  Header& header = state->header;
  if (bytes.size() < kHeaderBytes)
    fail(Code::format, "{}: {} bytes; a token file has a header of {}", what, bytes.size(),
         kHeaderBytes);
  std::memcpy(&header, bytes.data(), sizeof header);
  if (std::string_view(header.magic, sizeof header.magic) != kMagic)
    fail(Code::format, "{}: does not begin with {}: not a token file (sluice train makes them)",
         what, kMagic);
  if (header.version != kVersion)
    fail(Code::unsupported, "{}: version {}, this build reads version {}", what, header.version,
         kVersion);
  if (header.header_hash != hash_of(header))
    fail(Code::format, "{}: the checksum of the header is wrong: the file is damaged", what);
  if (header.id_bytes != 2 && header.id_bytes != 4)
    fail(Code::format, "{}: {} bytes per id; expected 2 or 4", what, header.id_bytes);
  if (header.description_bytes > kLongestDescription)
    fail(Code::limit, "{}: a description of {} bytes; at most {} are allowed", what,
         header.description_bytes, kLongestDescription);
  const uint64_t rest = bytes.size() - kHeaderBytes;
  const uint64_t most = rest / header.id_bytes;  // also keeps the sum and the product small
  const uint64_t description = padded(header.description_bytes);
  if (description > rest || header.train > most || header.held_out > most ||
      description + (header.train + header.held_out) * header.id_bytes != rest)
    fail(Code::format,
         "{}: {} bytes behind the header; expected {} of description and {} + {} ids of {} bytes",
         what, rest, description, header.train, header.held_out, header.id_bytes);
  const auto text = bytes.subspan(kHeaderBytes, header.description_bytes);
  if (xxhash64(text) != header.description_hash)
    fail(Code::format, "{}: the checksum of the description is wrong: the file is damaged", what);
  const auto ids = bytes.subspan(kHeaderBytes + description);
  if (xxhash64(ids) != header.ids_hash)
    fail(Code::format, "{}: the checksum of the ids is wrong: the file is damaged", what);
  state->info =
      read_info({reinterpret_cast<const char*>(text.data()), text.size()}, what + ": description");
  state->ids = ids.data();
  TokenFile file;
  const int64_t train = static_cast<int64_t>(header.train);
  const int64_t vocabulary = state->info.vocabulary;
  const std::string name = what;
  file.state_ = std::move(state);
  // An id outside the vocabulary would be read outside of an embedding table.
  std::vector<int64_t> chunk(size_t{1} << 16);
  for (const TextSplit split : {TextSplit::train, TextSplit::held_out}) {
    for (int64_t first = 0; first < file.count(split); first += int64_t(chunk.size())) {
      const auto n = std::min<int64_t>(int64_t(chunk.size()), file.count(split) - first);
      const std::span part(chunk.data(), static_cast<size_t>(n));
      file.read(split, first, part);
      for (const int64_t& id : part) {
        if (id >= vocabulary)
          fail(Code::format, "{}: id {} at {}: outside the vocabulary of {}", name, id,
               (split == TextSplit::train ? 0 : train) + first + (&id - part.data()), vocabulary);
      }
    }
  }
  return file;
}

const std::string& TokenFile::path() const { return state_->what; }
const TokenInfo& TokenFile::info() const { return state_->info; }
uint64_t TokenFile::checksum() const { return state_->header.header_hash; }

int64_t TokenFile::count(TextSplit split) const {
  return static_cast<int64_t>(split == TextSplit::train ? state_->header.train
                                                        : state_->header.held_out);
}

void TokenFile::read(TextSplit split, int64_t first, std::span<int64_t> out) const {
  const int64_t n = static_cast<int64_t>(out.size());
  if (first < 0 || first > count(split) || n > count(split) - first)
    fail(Code::usage, "{}: ids [{}, {}) of {}", state_->what, first, first + n, count(split));
  const size_t size = state_->header.id_bytes;
  const std::byte* at =
      state_->ids +
      (static_cast<size_t>(first) + (split == TextSplit::train ? 0 : state_->header.train)) * size;
  for (int64_t& id : out) {
    uint32_t value = 0;
    std::memcpy(&value, at, size);
    id = value;
    at += size;
  }
}

}  // namespace sluice::data
