// LibTorch's own forward of a bundle's bricks, for the column beside the engine's in `sluice
// bench`.
#include "cli/bench_hook.h"
#include "sluice/base/error.h"
#include "sluice/lab/model/model.h"
#include "sluice/lab/train/fast_blas.h"

namespace sluice::cli {
namespace bench_libtorch_verb {

LabForward make_forward(const std::string& path, std::span<const float> input, int64_t batch,
                        int threads) {
  lab::use_fast_blas();
  const bundle::Bundle bundle = bundle::Bundle::open(path);
  if (bundle.model_json().empty()) {
    return {};
  }
  try {
    auto model = std::make_shared<lab::Model>(lab::load_model(bundle));
    model->root->eval();
    std::vector<int64_t> sizes{batch};
    sizes.insert(sizes.end(), model->input_shape.begin(), model->input_shape.end());
    const at::Tensor x =
        torch::from_blob(const_cast<float*>(input.data()), sizes, torch::kFloat32).clone();
    LabForward forward;
    forward.run = [model, x, threads] {
      if (at::get_num_threads() != threads) {
        at::set_num_threads(threads);
      }
      const c10::InferenceMode no_gradients;
      lab::Context context;
      model->forward(x, context);
    };
    at::set_num_threads(threads);
    const c10::InferenceMode no_gradients;
    lab::Context context;
    const at::Tensor y = model->forward(x, context).contiguous();
    forward.output.assign(y.data_ptr<float>(), y.data_ptr<float>() + y.numel());
    return forward;
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    fail(Code::internal, "LibTorch on {}: {}", path, message.substr(0, message.find('\n')));
  }
}

const bool registered = register_lab_forward(make_forward);

}  // namespace bench_libtorch_verb
}  // namespace sluice::cli
