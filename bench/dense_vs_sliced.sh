#!/usr/bin/env bash
# The dense network of the quickstart, its consensus sub-network and the same MACs from scratch: engine latency at batch 1 and
# 64 on one thread and on all cores, beside LibTorch's own forward of the same networks. Needs a finished quickstart.
set -euo pipefail
cd "$(dirname "$0")/.."
models=runs/quickstart
for name in dense consensus small-from-scratch; do
  [ -f "$models/$name.safetensors" ] || { echo "no $models/$name.safetensors: run scripts/quickstart.sh first" >&2; exit 1; }
done
run=(build/release/sluice bench "$models/dense.safetensors" "$models/consensus.safetensors" "$models/small-from-scratch.safetensors"
  --batch 1,64 --threads "1,$(nproc)" --rounds 15)
"${run[@]}" --json > docs/results/bench-dense-vs-sliced.json
"${run[@]}"
