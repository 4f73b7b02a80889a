// An imported bundle's tensors under the names they came with. Internal to export.
#pragma once
#include <map>
#include <optional>
#include <string>

#include "sluice/bundle/export/export.h"
#include "sluice/bundle/export/origin.h"
#include "sluice/bundle/import/family.h"
#include "sluice/bundle/import/source.h"

namespace sluice::bundle {

struct Replayed {
  std::string architecture;
  Json config;
  std::map<std::string, hf::StoredTensor> tensors;
  std::optional<hf::Pooling> pooling;
  int64_t context = 0;
};

/// Throws Error{unsupported} naming the node or tensor that is not as the import made it. The
/// origin has a config.
Replayed replay_import(const Bundle& bundle, const Origin& origin);

/// Them as a folder.
ExportResult export_replayed(const Bundle& bundle, const Origin& origin, const std::string& folder,
                             const ExportOptions& options);

}  // namespace sluice::bundle
