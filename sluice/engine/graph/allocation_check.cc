// Counts every allocation of the process (this executable's malloc replaces the C library's,
// operator new goes through it) and fails when Session::run() allocates outside oneDNN's own calls,
// or when a run leaves live bytes behind.
#include <malloc.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "sluice/engine/graph/network.h"
#include "sluice/engine/graph/test_networks.h"
#include "sluice/engine/kernel/onednn.h"

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);
}

namespace {

std::atomic<int64_t> g_live{0}, g_ours{0}, g_onednn{0};

void* counted(void* p) {
  if (!p) return p;
  g_live += static_cast<int64_t>(malloc_usable_size(p));
  (sluice::engine::onednn::inside() ? g_onednn : g_ours)++;
  return p;
}

void uncounted(void* p) {
  if (p) g_live -= static_cast<int64_t>(malloc_usable_size(p));
}

}  // namespace

extern "C" {
void* malloc(size_t n) { return counted(__libc_malloc(n)); }
void* calloc(size_t n, size_t each) { return counted(__libc_calloc(n, each)); }
void* realloc(void* p, size_t n) {
  uncounted(p);
  return counted(__libc_realloc(p, n));
}
void* memalign(size_t align, size_t n) { return counted(__libc_memalign(align, n)); }
void* aligned_alloc(size_t align, size_t n) { return counted(__libc_memalign(align, n)); }
int posix_memalign(void** p, size_t align, size_t n) {
  *p = counted(__libc_memalign(align, n));
  return *p ? 0 : ENOMEM;
}
void free(void* p) {
  uncounted(p);
  __libc_free(p);
}
}

namespace {

using namespace sluice::engine;

int check(const char* what, const testing::Model& model, int64_t batch, int threads) {
  const Network network(model.bundle);
  Session session(network, {.batch = batch, .threads = threads});
  const std::vector<float> input(static_cast<size_t>(batch * sluice::numel(network.input_shape())),
                                 0.5f);
  std::vector<float> output(static_cast<size_t>(batch * sluice::numel(network.output_shape())));
  sluice::Meter meter;
  sluice::Budget budget;
  budget.macs_per_sample = network.cost().macs;
  const RunOptions options{.meter = &meter, .budget = &budget};
  for (int i = 0; i < 3; ++i)
    session.run(input, output, options);  // warm-up: threads, the meter's entries
  const int64_t live = g_live, ours = g_ours, theirs = g_onednn;
  constexpr int kRuns = 20;
  int failures = 0;
  for (int i = 0; i < kRuns; ++i) {
    session.run(input, output, options);
    if (g_live != live) ++failures;
  }
  const int64_t made = g_ours - ours;
  std::printf(
      "%s, batch %ld, %d threads: %ld allocations of ours, %.1f of oneDNN per run, live bytes %s\n",
      what, static_cast<long>(batch), threads, static_cast<long>(made),
      static_cast<double>(g_onednn - theirs) / kRuns, failures ? "CHANGED" : "unchanged");
  return failures + static_cast<int>(made);
}

}  // namespace

int main() {
  int failures = 0;
  {
    std::vector<char*> probe{static_cast<char*>(std::malloc(100))};
    if (g_ours < 2) {
      std::printf("the counter does not see malloc\n");
      ++failures;
    }
    std::free(probe[0]);
  }
  const auto resnet = testing::make_resnet({.size = 14, .blocks = 1, .inner = testing::half_odd});
  testing::NetworkBuilder net(1);
  auto x = net.node("flatten", "flatten", {net.input({1, 12, 12})});
  x = net.activation("relu", net.linear("fc1", x, 60, true, 0.05));
  x = net.node("layer_norm", "norm", {net.linear("fc2", x, 30)});
  const auto mlp = net.finish(net.node("softmax", "softmax", {x}));
  for (const int threads : {1, 2}) {
    for (const int64_t batch : {1, 8, 33}) {
      failures += check("resnet", resnet, batch, threads);
      failures += check("sparse mlp", mlp, batch, threads);
    }
  }
  return failures == 0 ? 0 : 1;
}
