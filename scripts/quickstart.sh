#!/usr/bin/env bash
# From a fresh checkout to a trained, thinned and measured network: installs what is missing, builds, runs
# `sluice quickstart`. Options go to the program: scripts/quickstart.sh --steps 400
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/scripts/deps.sh" >&2
"$root/scripts/build.sh" release sluice >&2
exec "$root/build/release/sluice" quickstart "$@"
