// The C interface: every entry catches, so that no exception crosses into C.
#include <algorithm>
#include <memory>
#include <new>
#include <string>

#include "sluice/base/error.h"
#include "sluice/engine/capi/sluice.h"
#include "sluice/engine/graph/network.h"

struct sluice_network {
  sluice::engine::Network network;
  sluice::engine::Session session;
  int64_t input_elements, output_elements;
  int64_t size = -1;
};

namespace {

thread_local std::string t_error;

sluice_status failed(sluice_status status, const char* message) noexcept {
  try {
    t_error = message;
  } catch (...) {
    t_error.clear();  // out of memory: the status has to do
  }
  return status;
}

/// Runs `body` and turns what it throws into a status and a message.
template <class Body>
sluice_status guarded(Body body) noexcept {
  t_error.clear();
  try {
    body();
    return SLUICE_OK;
  } catch (const sluice::Error& e) {
    return failed(static_cast<sluice_status>(e.code()), e.what());
  } catch (const std::bad_alloc&) {
    return failed(SLUICE_LIMIT, "out of memory");
  } catch (const std::exception& e) {
    return failed(SLUICE_INTERNAL, e.what());
  } catch (...) {
    return failed(SLUICE_INTERNAL, "unknown failure");
  }
}

void require(bool given, const char* function, const char* argument) {
  if (!given) sluice::fail(sluice::Code::usage, "{}: {} is NULL", function, argument);
}

}  // namespace

extern "C" {

const char* sluice_version(void) { return SLUICE_VERSION; }

sluice_status sluice_load(const char* path, const sluice_options* options,
                          sluice_network** network) {
  return guarded([&] {
    require(network != nullptr, "sluice_load", "network");
    *network = nullptr;
    require(path != nullptr, "sluice_load", "path");
    sluice::engine::Network::Options open;
    sluice::engine::Session::Options session;
    if (options != nullptr) {
      open.verify_checksums = options->verify_checksums != 0;
      session.batch = options->batch == 0 ? 1 : options->batch;
      session.threads = options->threads;
      session.sequences = options->sequences != 0;
      session.last_rows = options->last_rows;
    }
    auto loaded = sluice::engine::Network::open(path, open);
    sluice::engine::Session planned(loaded, session);
    const int64_t in = sluice::numel(loaded.input_shape()),
                  out = sluice::numel(loaded.output_shape());
    *network = new sluice_network{std::move(loaded), std::move(planned), in, out};
  });
}

sluice_status sluice_query(const sluice_network* network, sluice_info* info) {
  return guarded([&] {
    require(network != nullptr, "sluice_query", "network");
    require(info != nullptr, "sluice_query", "info");
    const sluice::engine::Network& n = network->network;
    const sluice::Shape& shape = n.input_shape();
    constexpr size_t kMaxRank = sizeof(info->input_shape) / sizeof(info->input_shape[0]);
    if (shape.size() > kMaxRank) {
      sluice::fail(sluice::Code::unsupported,
                   "sluice_query: input of rank {}; sluice_info holds {}", shape.size(), kMaxRank);
    }
    *info = sluice_info{};
    info->input_elements = network->input_elements;
    info->output_elements = network->output_elements;
    info->input_rank = static_cast<int64_t>(shape.size());
    std::copy(shape.begin(), shape.end(), info->input_shape);
    info->parameters = n.cost().params;
    info->macs = n.cost().macs;
    info->file_bytes = static_cast<int64_t>(n.bundle().file_bytes());
    info->label_count = static_cast<int64_t>(n.bundle().task().labels.size());
  });
}

const char* sluice_label(const sluice_network* network, int64_t index) {
  t_error.clear();
  if (network == nullptr) {
    failed(SLUICE_USAGE, "sluice_label: network is NULL");
    return nullptr;
  }
  const auto& labels = network->network.bundle().task().labels;
  if (index < 0 || index >= static_cast<int64_t>(labels.size())) return nullptr;
  return labels[static_cast<size_t>(index)].c_str();
}

const char* sluice_size_name(const sluice_network* network, int64_t index) {
  t_error.clear();
  if (network == nullptr) {
    failed(SLUICE_USAGE, "sluice_size_name: network is NULL");
    return nullptr;
  }
  const auto& sizes = network->network.bundle().sizes();
  if (index < 0 || index >= static_cast<int64_t>(sizes.size())) return nullptr;
  return sizes[static_cast<size_t>(index)].name.c_str();
}

sluice_status sluice_choose_size(sluice_network* network, const char* name) {
  return guarded([&] {
    require(network != nullptr, "sluice_choose_size", "network");
    const auto& bundle = network->network.bundle();
    network->size =
        name == nullptr ? -1 : sluice::bundle::find_size(bundle.sizes(), name, bundle.path());
  });
}

sluice_status sluice_run(sluice_network* network, const float* input, size_t input_elements,
                         float* output, size_t output_elements, int64_t count) {
  return guarded([&] {
    require(network != nullptr, "sluice_run", "network");
    require(input != nullptr, "sluice_run", "input");
    require(output != nullptr, "sluice_run", "output");
    network->session.run({input, input_elements}, {output, output_elements}, count,
                         {.size = network->size});
  });
}

sluice_status sluice_run_tokens(sluice_network* network, const float* input, size_t input_elements,
                                float* output, size_t output_elements, const int64_t* tokens,
                                int64_t samples) {
  return guarded([&] {
    require(network != nullptr, "sluice_run_tokens", "network");
    require(input != nullptr, "sluice_run_tokens", "input");
    require(output != nullptr, "sluice_run_tokens", "output");
    require(tokens != nullptr, "sluice_run_tokens", "tokens");
    if (samples < 0)
      sluice::fail(sluice::Code::shape, "sluice_run_tokens: {} samples; expected 0 or more",
                   samples);
    network->session.run_tokens({input, input_elements}, {output, output_elements},
                                {tokens, static_cast<size_t>(samples)}, {.size = network->size});
  });
}

sluice_status sluice_reset(sluice_network* network) {
  return guarded([&] {
    require(network != nullptr, "sluice_reset", "network");
    network->session.reset();
  });
}

const char* sluice_last_error(void) { return t_error.c_str(); }

void sluice_free(sluice_network* network) { delete network; }

}  // extern "C"
