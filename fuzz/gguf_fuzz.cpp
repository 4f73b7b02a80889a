// Any bytes as a GGUF file: reading, every value by every getter, every tensor's numbers and the
// tokenizer may only ever throw Error, with a message of one line.
#include <cstdlib>
#include <cstring>
#include <string>

#include "fuzz/refusal.h"
#include "sluice/bundle/gguf/packed_blocks.h"
#include "sluice/bundle/gguf/vocabulary.h"

using namespace sluice;
using namespace sluice::bundle;

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

template <class F>
void only_errors(F&& call) {
  try {
    call();
  } catch (const Error& error) {
    check_refusal(error);
  }
}

void read_values(const gguf::File& file) {
  for (const auto& entry : file.metadata()) {
    const auto& key = entry.first;
    only_errors([&] { file.integer(key, INT64_MIN, INT64_MAX); });
    only_errors([&] { file.number(key, -1e300, 1e300); });
    only_errors([&] { file.flag(key); });
    only_errors([&] { file.text(key); });
    only_errors([&] { file.texts(key); });
    only_errors([&] { file.integers(key, 0, INT64_MAX); });
    only_errors([&] { file.numbers(key); });
  }
}

void read_tensor(const gguf::Tensor& tensor) {
  const gguf::TensorType* type = gguf::find_type(tensor.type);
  if (!type) return;
  const int64_t elements = numel(tensor.shape), columns = tensor.shape.back();
  require(elements / type->block * type->bytes == static_cast<int64_t>(tensor.bytes.size()));
  std::vector<float> values(static_cast<size_t>(elements));
  gguf::dequantize(tensor.type, tensor.bytes, values);
  const auto format = gguf::format_of(tensor.type);
  if (!format || tensor.shape.size() != 2) return;
  const int64_t rows = tensor.shape[0];
  const auto stored = gguf::from_blocks(tensor.type, tensor.bytes, rows, columns);
  if (!stored) return;
  only_errors([&] {
    const PackedMatrix matrix = view_packed(*format, rows, columns, *stored, "tensor");
    require(std::ranges::equal(gguf::to_blocks(matrix), tensor.bytes));
    std::vector<float> again(values.size());
    unpack(matrix, again);
    require(again == values);
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  only_errors([&] {
    const gguf::File file = gguf::File::parse(bytes, "input");
    read_values(file);
    for (const gguf::Tensor& tensor : file.tensors()) read_tensor(tensor);
    only_errors([&] {
      const gguf::Vocabulary vocabulary = gguf::read_vocabulary(file);
      if (vocabulary.tokens.empty()) return;
      const std::string json = gguf::tokenizer_json(vocabulary, "input");
      gguf::vocabulary_of(json, static_cast<int64_t>(vocabulary.tokens.size()) + 1, "input",
                          nullptr);
    });
  });
  return 0;
}
