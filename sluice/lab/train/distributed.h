// Several processes that train one model: each takes its part of every batch, gradients are summed
// over all. Through c10d: Gloo for the CPU, NCCL for CUDA, where the build has them.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <memory>
#include <string>

namespace sluice::lab {

/// Who this process is, and where process 0 listens.
struct Launch {
  int rank = 0, size = 1;
  int local_rank = 0;  ///< on this host: which of its GPUs
  std::string address = "127.0.0.1";
  int port = 29500;
  bool store_exists = false;  ///< the launcher listens there already
};

/// Of torchrun (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) or Open MPI's mpirun
/// (OMPI_COMM_WORLD_*; MASTER_ADDR and MASTER_PORT may say where, default 127.0.0.1:29500). One
/// process without either. Throws Error{config} naming the variable that makes no sense.
Launch launch_from_environment();

class ProcessGroup {
 public:
  virtual ~ProcessGroup() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// `tensor` (contiguous) becomes the sum over all processes. Throws Error{io} when another
  /// process has gone.
  virtual void sum(at::Tensor& tensor) = 0;
  /// `tensor` becomes that of process 0.
  virtual void broadcast(at::Tensor& tensor) = 0;
};

/// Meets the other processes; waits for them for at most `seconds`. Throws Error{io} when they do
/// not come or the address is taken, Error{unsupported} when the build has no backend for `device`.
std::shared_ptr<ProcessGroup> join_processes(const Launch& launch, c10::Device device,
                                             int seconds = 300);

/// "gloo", "nccl", "gloo, nccl" or "": what this build can use.
std::string distributed_backends();

}  // namespace sluice::lab
