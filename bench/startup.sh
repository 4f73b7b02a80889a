#!/usr/bin/env bash
# Wall time of starting the engine-only binary and reading one bundle: median of 21 starts, in milliseconds.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${1:-build/engine-only/sluice}
bundle=${2:-tests/golden/bundle_v1.safetensors}
median() {
  for _ in $(seq 21); do
    local begun ended
    begun=$(date +%s%N)
    "$@" > /dev/null
    ended=$(date +%s%N)
    echo $(((ended - begun) / 1000))
  done | sort -n | sed -n 11p | awk '{printf "%.1f ms\n", $1 / 1000}'
}
echo "--version   $(median "$binary" --version)"
echo "inspect     $(median "$binary" inspect "$bundle")"
