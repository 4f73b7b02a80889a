// Bundles as ONNX files, operator set 17, for other runtimes. Graphs of layers with f32 weights go
// out with the batch as an open first dimension, encoders of ids [T] with int64 ids and an open T;
// what ONNX has no operator for is refused, naming the node and the reason, and never dropped.
#pragma once
#include <string>

#include "sluice/bundle/bundle.h"

namespace sluice::bundle {

struct OnnxExport {
  int64_t opset = 17;
  size_t nodes = 0, tensors = 0;
};

/// The file's bytes. Throws Error{unsupported} naming node and reason, Error{limit} above the 2 GiB
/// that a protocol buffer holds.
std::string onnx_bytes(const Bundle& model, OnnxExport* result = nullptr);
/// The same into a file, written aside and renamed.
OnnxExport export_onnx(const Bundle& model, const std::string& path);

}  // namespace sluice::bundle
