#!/usr/bin/env bash
# Trains configs/decoder-small.toml on a machine that has a GPU, LibTorch (PyTorch's pip package) and no network.
#
#   scripts/train-small.sh small.tokens [OUTPUT]    builds what training needs (no engine), trains
#
# small.tokens comes from `sluice train configs/decoder-small.toml --pack-only -o small.safetensors` elsewhere. Headers that the
# machine lacks (toml++, nlohmann-json, CLI11, fmt, xxhash,
# png, zlib, pcre2, icu) are looked for in $SLUICE_DEPS, laid out like /usr. More
# options of `sluice train` go into $SLUICE_TRAIN_OPTIONS; GPUS=2 uses two.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
tokens=$(realpath "$1")
output=$(realpath -m "${2:-small.safetensors}")
cd "$(dirname "$0")/.."
build=${SLUICE_BUILD:-build/gpu}

if [ ! -x "$build/sluice" ]; then
  torch=$(python3 -c 'import torch; print(torch.utils.cmake_prefix_path)')
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DSLUICE_ENGINE=OFF -DSLUICE_TESTS=OFF \
    -DSLUICE_BENCH=OFF "-DCMAKE_PREFIX_PATH=$torch;${SLUICE_DEPS:-/usr}/usr;${SLUICE_DEPS:-/usr}"
  cmake --build "$build" --target sluice -j "${SLUICE_JOBS:-$(nproc)}"
fi

read -r -a options <<<"${SLUICE_TRAIN_OPTIONS:-}"
command=("$build/sluice" train configs/decoder-small.toml --tokens "$tokens" -o "$output" --device cuda "${options[@]}")
if [ "${GPUS:-1}" -gt 1 ]; then
  exec python3 -m torch.distributed.run --no-python --nproc-per-node "$GPUS" "${command[@]}"
fi
exec "${command[@]}"
