#include "cli/lab/lab_verb.h"

#include "cli/interrupt.h"
#include "sluice/base/error.h"
#include "sluice/base/file.h"
#include "sluice/lab/train/fast_blas.h"

namespace sluice::cli {

int with_libtorch(const Globals& globals, const std::function<int()>& verb) {
  lab::use_fast_blas();
  if (globals.threads > 0) {
    at::set_num_threads(globals.threads);
  }
  try {
    return verb();
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    const bool memory = message.find("allocate memory") != std::string::npos ||
                        message.find("out of memory") != std::string::npos;
    fail(memory ? Code::limit : Code::internal, "LibTorch: {}",
         message.substr(0, message.find('\n')));
  }
}

c10::Device parse_device(const std::string& text) {
  if (text != "cpu" && text != "cuda" && !text.starts_with("cuda:")) {
    fail(Code::usage, "--device {}: expected cpu, cuda or cuda:N", text);
  }
  if (text == "cpu") {
    return c10::Device(c10::kCPU);
  }
  if (!torch::cuda::is_available()) {
    fail(Code::unsupported, "--device {}: this LibTorch sees no CUDA device; use --device cpu",
         text);
  }
  try {
    const c10::Device device(text);
    const int index = device.has_index() ? device.index() : 0;
    if (index >= static_cast<int>(torch::cuda::device_count())) {
      fail(Code::unsupported, "--device {}: there are {} CUDA devices, numbered from 0", text,
           torch::cuda::device_count());
    }
    return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index));
  } catch (const c10::Error&) {
    fail(Code::usage, "--device {}: expected cpu, cuda or cuda:N", text);
  }
}

void prepare_output(const std::string& path) {
  clean_up_on_interrupt(path);
  const AtomicFile probe(path);
}

std::string one_line(const Json& report) {
  std::string text;
  for (const auto& item : report.items()) {
    const Json& value = item.value();
    std::string shown;
    if (value.is_number_float()) {
      shown = fmt::format("{:.4g}", value.get<double>());
    } else if (value.is_string()) {
      shown = value.get<std::string>();
    } else if (value.is_number_integer() || value.is_boolean()) {
      shown = value.dump();
    } else {
      continue;
    }
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", item.key(), shown);
  }
  return text;
}

}  // namespace sluice::cli
