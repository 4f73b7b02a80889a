#include "sluice/engine/text/text_model.h"

#include "sluice/base/error.h"
#include "sluice/base/utf8.h"

namespace sluice::engine {

int64_t vocabulary_of(const Network& network) {
  const bundle::Graph& graph = network.bundle().graph();
  for (const bundle::Node& node : graph.nodes) {
    if (node.op == "embedding" && node.inputs[0] == graph.inputs[0].name &&
        network.input_shape().size() == 1)
      return graph.tensors.at(node.tensors.at("weight")).shape[0];
  }
  fail(Code::unsupported, "{}: expected a network that looks up ids [T], found an input {}",
       network.bundle().path(), to_string(network.input_shape()));
}

text::Tokenizer tokenizer_of(const Network& network) {
  const bundle::Bundle& model = network.bundle();
  const int64_t vocabulary = vocabulary_of(network);
  if (model.tokenizer_json().empty())
    fail(Code::missing, "{}: no tokenizer; import it again from a folder with tokenizer.json",
         model.path());
  text::Tokenizer tokenizer =
      text::Tokenizer::parse(model.tokenizer_json(), model.path() + ": tokenizer");
  if (tokenizer.id_limit() > vocabulary)
    fail(Code::shape,
         "{}: the tokenizer has ids up to {}, the network takes 0 to {}; they do not belong "
         "together. Import the model again with its own tokenizer.json",
         model.path(), tokenizer.id_limit() - 1, vocabulary - 1);
  return tokenizer;
}

void require_utf8(std::string_view text, const std::string& what) {
  const size_t good = valid_utf8_prefix(text);
  if (good < text.size())
    fail(Code::format, "{}: byte {} (0x{:02x}) is not UTF-8; convert the text first", what, good,
         static_cast<unsigned char>(text[good]));
}

}  // namespace sluice::engine
