#include "sluice/bundle/import/hf.h"

#include <algorithm>
#include <filesystem>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/bundle/import/config.h"
#include "sluice/bundle/import/family.h"
#include "sluice/bundle/import/weights.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

using hf::Config;
using hf::Model;
using hf::Pooling;

struct HfArchitecture {
  const char* name;
  void (*build)(Model&);
};
constexpr HfArchitecture kHfArchitectures[] = {
    {"LlamaForCausalLM", hf::build_decoder},
    {"MistralForCausalLM", hf::build_decoder},
    {"Qwen2ForCausalLM", hf::build_decoder},
    {"Qwen3ForCausalLM", hf::build_decoder},
    {"MixtralForCausalLM", hf::build_decoder},
    {"Qwen2MoeForCausalLM", hf::build_decoder},
    {"Qwen3MoeForCausalLM", hf::build_decoder},
    {"GPT2LMHeadModel", hf::build_gpt2},
    {"BertModel", hf::build_encoder},
    {"BertForMaskedLM", hf::build_encoder},
    {"RobertaModel", hf::build_encoder},
    {"RobertaForMaskedLM", hf::build_encoder},
    {"XLMRobertaModel", hf::build_encoder},
    {"XLMRobertaForMaskedLM", hf::build_encoder},
    {"ViTForImageClassification", hf::build_vision},
    {"DeiTForImageClassification", hf::build_vision},
    {"DeiTForImageClassificationWithTeacher", hf::build_vision}};

const HfArchitecture& architecture_of(const Config& config) {
  const std::vector<std::string> names = config.texts("architectures");
  std::string known;
  for (const HfArchitecture& architecture : kHfArchitectures) {
    if (!names.empty() && names[0] == architecture.name) return architecture;
    known += (known.empty() ? "" : ", ") + std::string(architecture.name);
  }
  fail(Code::unsupported, "{}: expected one of {}; found {}", config.field("architectures"), known,
       names.empty() ? "nothing" : "'" + printable(names[0], 80) + "'");
}

bool is_module(const std::string& type, const std::string& name) {
  return type == name || type.ends_with("." + name);
}

std::string pooling_kind(const Config& config) {
  static constexpr std::pair<const char*, const char*> kModes[] = {
      {"pooling_mode_mean_tokens", "mean"},
      {"pooling_mode_cls_token", "first"},
      {"pooling_mode_lasttoken", "last"}};
  std::string kind;
  if (config.has("pooling_mode")) {
    const std::string mode = config.text_or("pooling_mode", "");
    kind = mode == "cls" ? "first" : mode == "lasttoken" ? "last" : mode == "mean" ? "mean" : "";
    if (kind.empty())
      fail(Code::unsupported, "{}: expected mean, cls or lasttoken, found '{}'",
           config.field("pooling_mode"), printable(mode, 60));
    return kind;
  }
  for (const auto& [key, value] : config.json().items()) {
    if (!key.starts_with("pooling_mode_") || !config.flag_or(key, false)) continue;
    const auto mode =
        std::ranges::find_if(kModes, [&key = key](const auto& m) { return key == m.first; });
    if (mode == std::end(kModes) || !kind.empty())
      fail(Code::unsupported,
           "{}: expected one pooling of mean_tokens, cls_token and lasttoken, found this one{}",
           config.field(printable(key, 60)), kind.empty() ? "" : " beside " + kind);
    kind = mode->second;
  }
  if (kind.empty())
    fail(Code::config, "{}: no pooling_mode_* is true; expected one", config.what());
  return kind;
}

/// What sentence-transformers adds to a model, and the folder it has the model in.
struct Sentence {
  std::optional<Pooling> pooling;
  std::string folder;
};

Sentence read_sentence(const std::string& folder) {
  Sentence sentence{std::nullopt, folder};
  const std::string path = folder + "/modules.json";
  if (!file_exists(path)) return sentence;
  const Json modules = read_json_file(path);
  if (!modules.is_array())
    fail(Code::config, "{}: expected a list of modules, found {}", path, modules.type_name());
  bool transformer = false;
  for (size_t i = 0; i < modules.size(); ++i) {
    const Config module(modules[i], fmt::format("{}: module {}", path, i));
    const std::string type = module.text_or("type", ""), place = module.text_or("path", "");
    if (!place.empty()) hf::require_plain_name(place, module.field("path"));
    if (is_module(type, "Transformer") && i == 0) {
      transformer = true;
      if (!place.empty()) sentence.folder = folder + "/" + place;
    } else if (is_module(type, "Pooling") && transformer && !sentence.pooling) {
      sentence.pooling = Pooling{
          pooling_kind(Config::read(folder + (place.empty() ? "" : "/" + place) + "/config.json")),
          false, 0};
    } else if (is_module(type, "Normalize") && sentence.pooling && !sentence.pooling->normalize) {
      sentence.pooling->normalize = true;
    } else {
      fail(Code::unsupported,
           "{}: expected Transformer, then Pooling, then perhaps Normalize; found '{}'",
           module.field("type"), printable(type, 80));
    }
  }
  const std::string lengths = sentence.folder + "/sentence_bert_config.json";
  if (sentence.pooling && file_exists(lengths))
    sentence.pooling->max_tokens = Config::read(lengths).integer_or("max_seq_length", 0);
  return sentence;
}

std::optional<Pooling> chosen_pooling(const std::optional<Pooling>& found,
                                      const ImportOptions& options) {
  if (options.pooling.empty()) {
    if (options.normalize && !found)
      fail(Code::usage, "--normalize needs a pooling: give --pooling mean, first or last");
    if (!found) return found;
    Pooling pooling = *found;
    pooling.normalize = pooling.normalize || options.normalize;
    return pooling;
  }
  if (options.pooling != "mean" && options.pooling != "first" && options.pooling != "last")
    fail(Code::usage, "--pooling: expected mean, first or last, found '{}'",
         printable(options.pooling, 60));
  return Pooling{options.pooling, options.normalize, found ? found->max_tokens : 0};
}

/// Ids that the tokenizer can give must be rows of the embedding.
void check_vocabulary(const std::string& text, const std::string& path, int64_t vocabulary) {
  const Config tokenizer(parse_json(text, path), path);
  const auto check = [&](const Json& id, const std::string& token) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= vocabulary)
      fail(Code::shape, "{}: token '{}': expected an id from 0 to {} (vocab_size), found {}", path,
           printable(token, 60), vocabulary - 1,
           printable(id.dump(-1, ' ', false, Json::error_handler_t::replace), 40));
  };
  const auto model = tokenizer.object("model");
  if (!model) fail(Code::config, "{}: expected an object, found nothing", tokenizer.field("model"));
  if (const auto it = model->json().find("vocab"); it != model->json().end()) {
    if (it->is_object())
      for (const auto& [token, id] : it->items()) check(id, token);
    else if (it->is_array() && static_cast<int64_t>(it->size()) > vocabulary)
      fail(Code::shape, "{}: {} tokens; config.json says vocab_size {}", model->field("vocab"),
           it->size(), vocabulary);
  }
  const auto added = tokenizer.json().find("added_tokens");
  if (added == tokenizer.json().end() || !added->is_array()) return;
  for (const Json& token : *added)
    if (token.is_object() && token.contains("id"))
      check(token["id"], Config(token, path).text_or("content", ""));
}

std::vector<int64_t> stop_tokens(const Config& config, const std::string& folder,
                                 int64_t vocabulary) {
  const std::string path = folder + "/generation_config.json";
  std::vector<int64_t> ids;
  if (file_exists(path)) ids = Config::read(path).integers("eos_token_id");
  if (ids.empty()) ids = config.integers("eos_token_id");
  for (const int64_t id : ids)
    if (id >= vocabulary)
      fail(Code::config, "{}: expected ids below vocab_size {}, found {}",
           config.field("eos_token_id"), vocabulary, id);
  return ids;
}

/// The provenance holds 16 levels and 1 MiB.
constexpr int kConfigLevels = 8;
constexpr size_t kConfigBytes = 128 << 10;

bool is_shallow(const Json& json, int levels) {
  if (!json.is_structured()) return true;
  return levels > 0 &&
         std::ranges::all_of(json, [&](const Json& part) { return is_shallow(part, levels - 1); });
}

std::string base_name(const std::string& folder) {
  const auto path = std::filesystem::weakly_canonical(folder);
  return printable(path.filename().string(), 200);
}

}  // namespace

void hf::build_family(Model& model) { architecture_of(model.config).build(model); }

ImportResult import_hugging_face(const std::string& source, const std::string& output,
                                 const ImportOptions& options) {
  std::error_code ignored;
  const std::filesystem::path path(source);
  if (!std::filesystem::exists(path, ignored))
    fail(Code::missing, "{}: does not exist; give a model's folder, or its safetensors file",
         source);
  const bool is_folder = std::filesystem::is_directory(path, ignored);
  std::string top = source, file;
  if (!is_folder) {
    file = path.filename().string();
    if (!file.ends_with(".safetensors"))
      fail(Code::unsupported, "{}: expected a model's folder or a .safetensors file", source);
    top = path.has_parent_path() ? path.parent_path().string() : ".";
  }
  const Sentence sentence = is_folder ? read_sentence(top) : Sentence{std::nullopt, top};
  const std::string& folder = sentence.folder;
  if (!file_exists(folder + "/config.json"))
    fail(Code::missing, "{}/config.json is not there; it says what the tensors are", folder);
  const Config config = Config::read(folder + "/config.json");
  if (config.has("quantization_config"))
    fail(Code::unsupported, "{}: import the model in f32, f16 or bf16 and quantize it here",
         config.field("quantization_config"));
  const HfArchitecture& architecture = architecture_of(config);
  hf::Weights weights(hf::open_folder(folder, file), options);
  Model model{
      config,    weights, options, chosen_pooling(sentence.pooling, options), architecture.name,
      Builder(), {}};
  const std::string preprocessor = folder + "/preprocessor_config.json";
  if (file_exists(preprocessor)) model.preprocessor = Config::read(preprocessor);
  architecture.build(model);
  hf::Texts texts;
  if (model.result.kind == "generate")
    texts.stop_tokens = stop_tokens(config, folder, model.result.vocabulary);
  const std::string tokenizer = folder + "/tokenizer.json";
  if (file_exists(tokenizer)) {
    texts.tokenizer = read_text_file(tokenizer, kMaxTokenizerBytes);
    check_vocabulary(texts.tokenizer, tokenizer, model.result.vocabulary);
  }
  texts.step = {{"step", "import"}, {"format", "huggingface"}, {"source", base_name(top)}};
  // For the way back: fields that the graph has no need of.
  const auto keep = [&texts](const char* key, const Config& file) {
    if (is_shallow(file.json(), kConfigLevels) && file.json().dump().size() <= kConfigBytes)
      texts.step[key] = file.json();
  };
  keep("config", config);
  if (model.preprocessor) keep("preprocessor", *model.preprocessor);
  return hf::finish_import(model, std::move(texts), output);
}

}  // namespace sluice::bundle
