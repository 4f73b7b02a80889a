#include "sluice/bundle/import/source.h"

#include <map>

#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/base/json.h"
#include "sluice/bundle/import/config.h"
#include "sluice/bundle/safetensors.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle::hf {
namespace {

class Folder : public Source {
 public:
  Folder(const std::string& folder, const std::string& file) {
    const std::string index = folder + "/model.safetensors.index.json";
    const std::string single = folder + "/" + (file.empty() ? "model.safetensors" : file);
    if (!file.empty() || file_exists(single)) {
      what_ = single;
      for (const TensorView& tensor : shard(single).tensors()) place_[tensor.name] = single;
      return;
    }
    if (!file_exists(index))
      fail(Code::missing,
           "{}: neither model.safetensors nor model.safetensors.index.json is there; models in "
           "other formats must be saved as safetensors first",
           folder);
    what_ = index;
    read_index(folder, index);
  }

  const std::string& what() const override { return what_; }
  const char* asker() const override { return "config.json"; }
  bool has(const std::string& name) const override { return place_.count(name) > 0; }

  StoredTensor get(const std::string& name) const override {
    const std::string& file = place_.at(name);
    const TensorView& tensor = files_.at(file).at(name);
    return {file, name, tensor.shape, tensor.dtype, std::nullopt, tensor.bytes, nullptr};
  }

  std::vector<std::string> names() const override {
    std::vector<std::string> result;
    for (const auto& [name, file] : place_) result.push_back(name);
    return result;
  }

 private:
  void read_index(const std::string& folder, const std::string& index) {
    const Config config = Config::read(index);
    const auto map = config.object("weight_map");
    if (!map)
      fail(Code::config, "{}: expected an object, found nothing", config.field("weight_map"));
    if (map->json().size() > ReadLimits{}.max_tensors)
      fail(Code::limit, "{}: {} tensors; at most {} are read", config.field("weight_map"),
           map->json().size(), ReadLimits{}.max_tensors);
    for (const auto& [name, value] : map->json().items()) {
      if (!value.is_string())
        fail(Code::config, "{}: tensor '{}': expected the name of a file, found {}",
             config.field("weight_map"), printable(name), value.type_name());
      const std::string part = value.get<std::string>();
      require_plain_name(
          part, fmt::format("{}: tensor '{}'", config.field("weight_map"), printable(name)));
      const std::string path = folder + "/" + part;
      if (!shard(path).find(name))
        fail(Code::missing, "{}: tensor '{}' is not in {}, where {} says it is", folder,
             printable(name), part, index);
      place_[name] = path;
    }
  }

  const SafetensorsFile& shard(const std::string& path) {
    const auto it = files_.find(path);
    return it != files_.end() ? it->second
                              : files_.emplace(path, SafetensorsFile::open(path)).first->second;
  }

  std::string what_;
  std::map<std::string, SafetensorsFile> files_;
  std::map<std::string, std::string> place_;  // tensor -> file
};

}  // namespace

std::unique_ptr<Source> open_folder(const std::string& folder, const std::string& file) {
  return std::make_unique<Folder>(folder, file);
}

}  // namespace sluice::bundle::hf
