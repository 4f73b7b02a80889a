#include "sluice/lab/train/distributed.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>

#include "sluice/base/error.h"

#if SLUICE_HAS_NCCL
#define USE_C10D_NCCL 1
#endif
#if SLUICE_HAS_GLOO && !defined(USE_C10D_GLOO)
#define USE_C10D_GLOO 1
#endif
#if SLUICE_HAS_GLOO || SLUICE_HAS_NCCL
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#endif
#if SLUICE_HAS_GLOO
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#endif
#if SLUICE_HAS_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

namespace sluice::lab {
namespace {

const char* variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : nullptr;
}

int number(const char* name, int low, int high) {
  const std::string_view text = variable(name) ? variable(name) : "";
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < low || value > high)
    fail(Code::config, "environment: {}='{}': expected a number from {} to {}", name,
         text.substr(0, 40), low, high);
  return value;
}

}  // namespace

Launch launch_from_environment() {
  Launch launch;
  const bool torchrun = variable("WORLD_SIZE") != nullptr;
  const bool mpirun = !torchrun && variable("OMPI_COMM_WORLD_SIZE") != nullptr;
  if (!torchrun && !mpirun) return launch;
  constexpr int kMost = 65536;
  launch.size = number(torchrun ? "WORLD_SIZE" : "OMPI_COMM_WORLD_SIZE", 1, kMost);
  launch.rank = number(torchrun ? "RANK" : "OMPI_COMM_WORLD_RANK", 0, launch.size - 1);
  const char* local = torchrun ? "LOCAL_RANK" : "OMPI_COMM_WORLD_LOCAL_RANK";
  if (variable(local)) launch.local_rank = number(local, 0, kMost);
  if (const char* address = variable("MASTER_ADDR")) launch.address = address;
  if (variable("MASTER_PORT")) launch.port = number("MASTER_PORT", 1, 65535);
  const char* store = variable("TORCHELASTIC_USE_AGENT_STORE");
  launch.store_exists = store != nullptr && std::string_view(store) == "True";
  return launch;
}

std::string distributed_backends() {
  std::string names;
#if SLUICE_HAS_GLOO
  names += "gloo";
#endif
#if SLUICE_HAS_NCCL
  names += names.empty() ? "nccl" : ", nccl";
#endif
  return names;
}

#if SLUICE_HAS_GLOO || SLUICE_HAS_NCCL
namespace {

std::string first_line(const char* text) {
  std::string line = text;
  line.resize(std::min(line.find('\n'), line.size()));
  return line.substr(0, 300);
}

/// `Backend` is c10d's ProcessGroupGloo or ProcessGroupNCCL; their common base changed with 2.0.
template <class Backend>
class Group : public ProcessGroup {
 public:
  Group(c10::intrusive_ptr<Backend> backend, c10::intrusive_ptr<c10d::Store> store,
        const Launch& launch)
      : backend_(std::move(backend)), store_(std::move(store)), launch_(launch) {}
  int rank() const override { return launch_.rank; }
  int size() const override { return launch_.size; }
  void sum(at::Tensor& tensor) override {
    std::vector<at::Tensor> tensors{tensor};
    run([&] { backend_->allreduce(tensors)->wait(); });
  }
  void broadcast(at::Tensor& tensor) override {
    std::vector<at::Tensor> tensors{tensor};
    run([&] { backend_->broadcast(tensors)->wait(); });
  }

 private:
  template <class Call>
  void run(Call&& call) {
    try {
      call();
    } catch (const std::exception& error) {
      fail(Code::io,
           "process {} of {}: lost another process ({}); see its own message for why it ended",
           launch_.rank, launch_.size, first_line(error.what()));
    }
  }
  c10::intrusive_ptr<Backend> backend_;
  c10::intrusive_ptr<c10d::Store> store_;
  Launch launch_;
};

template <class Backend>
std::shared_ptr<ProcessGroup> join(const Launch& launch, int seconds,
                                   c10::intrusive_ptr<typename Backend::Options> options) {
  c10d::TCPStoreOptions where;
  where.port = static_cast<uint16_t>(launch.port);
  where.isServer = launch.rank == 0 && !launch.store_exists;
  where.numWorkers = static_cast<size_t>(launch.size);
  where.waitWorkers = !launch.store_exists;
  where.timeout = std::chrono::seconds(seconds);
  auto store =
      c10::intrusive_ptr<c10d::Store>(c10::make_intrusive<c10d::TCPStore>(launch.address, where));
  auto named = c10::make_intrusive<c10d::PrefixStore>("sluice", store);
  auto backend = c10::make_intrusive<Backend>(named, launch.rank, launch.size, options);
  return std::make_shared<Group<Backend>>(std::move(backend), std::move(store), launch);
}

#if SLUICE_HAS_GLOO
std::shared_ptr<ProcessGroup> join_gloo(const Launch& launch, int seconds) {
  using Gloo = c10d::ProcessGroupGloo;
  auto options = Gloo::Options::create();
  const bool local = launch.address == "127.0.0.1" || launch.address == "localhost";
  if (const char* interface = variable("GLOO_SOCKET_IFNAME")) {
    options->devices.push_back(Gloo::createDeviceForInterface(interface));
  } else {
    options->devices.push_back(local ? Gloo::createDeviceForHostname("127.0.0.1")
                                     : Gloo::createDefaultDevice());
  }
  options->timeout = std::chrono::minutes(30);
  options->threads = 2;
  return join<Gloo>(launch, seconds, options);
}
#endif

}  // namespace
#endif

std::shared_ptr<ProcessGroup> join_processes(const Launch& launch, c10::Device device,
                                             int seconds) {
#if SLUICE_HAS_GLOO || SLUICE_HAS_NCCL
  try {
#if SLUICE_HAS_NCCL
    if (device.is_cuda())
      return join<c10d::ProcessGroupNCCL>(launch, seconds,
                                          c10d::ProcessGroupNCCL::Options::create());
#endif
#if SLUICE_HAS_GLOO
    if (device.is_cpu()) return join_gloo(launch, seconds);
#endif
  } catch (const std::exception& error) {
    fail(Code::io,
         "process {} of {}: cannot meet the others at {}:{} ({}); are all started, and is "
         "MASTER_PORT free?",
         launch.rank, launch.size, launch.address, launch.port, first_line(error.what()));
  }
#endif
  const std::string known = distributed_backends();
  fail(Code::unsupported,
       "{} processes on {}: this build has {}; CPU needs LibTorch 1.13 with Gloo (Debian: "
       "libgloo-dev), CUDA needs "
       "NCCL's header when Sluice is configured",
       launch.size, device.is_cuda() ? "CUDA" : "the CPU",
       known.empty() ? "no backend" : "only " + known);
}

}  // namespace sluice::lab
