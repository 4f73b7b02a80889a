#include "cli/export_onnx.h"

#include <fmt/core.h>

#include <filesystem>

#include "cli/interrupt.h"
#include "cli/output.h"
#include "sluice/base/json.h"
#include "sluice/base/table.h"
#include "sluice/bundle/export/onnx.h"

namespace sluice::cli {

int export_onnx_model(const std::string& source, const std::string& output,
                      const Globals& globals) {
  const bundle::Bundle model = bundle::Bundle::open(source);
  clean_up_on_interrupt(output);
  const bundle::OnnxExport result = bundle::export_onnx(model, output);
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(output));
  if (globals.json) {
    print_json({{"model", source},
                {"output", output},
                {"format", "onnx"},
                {"opset", result.opset},
                {"nodes", result.nodes},
                {"tensors", result.tensors},
                {"file_bytes", bytes}});
    return kSuccess;
  }
  Table table({"export", output});
  table.row({"format", fmt::format("ONNX, operator set {}", result.opset)});
  table.row({"nodes", fmt::format("{}", result.nodes)});
  table.row({"tensors", fmt::format("{}", result.tensors)});
  table.row({"file", format_bytes(bytes)});
  print(table.text());
  return kSuccess;
}

}  // namespace sluice::cli
