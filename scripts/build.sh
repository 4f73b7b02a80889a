#!/usr/bin/env bash
# Configures and builds one preset: scripts/build.sh release [TARGET...]
#
# Two jobs by default whatever the cores: one file that sees LibTorch takes over a gigabyte. SLUICE_JOBS=8 changes it.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=${1:-release}
shift || true
jobs=${SLUICE_JOBS:-2}
if ! cmake --preset "$preset" >"/tmp/sluice-configure.$$" 2>&1; then
  cat "/tmp/sluice-configure.$$" >&2
  rm -f "/tmp/sluice-configure.$$"
  echo "build.sh: configuring '$preset' failed; are all packages there? scripts/deps.sh" >&2
  exit 1
fi
rm -f "/tmp/sluice-configure.$$"
arguments=(-j "$jobs")
[ $# -eq 0 ] || arguments+=(--target "$@")
cmake --build "build/$preset" "${arguments[@]}"
