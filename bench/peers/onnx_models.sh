#!/usr/bin/env bash
# The speech detector that scripts/fetch-models.sh brings, in Sluice and in ONNX Runtime: are the outputs equal, frame by
# frame with its state, which is faster (interleaved, medians). The recogniser of text has ocr.py.
#
#   bench/peers/onnx_models.sh
#   bench/peers/onnx_models.sh --threads 1 --out /tmp/report.json
#
# bench/peers/setup.sh onnxruntime installs the rival. Also needed: a build of engine-only.
set -euo pipefail
cd "$(dirname "$0")/../.."

cache=${SLUICE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice}
bench/peers/setup.sh onnxruntime >&2
export SLUICE_MODELS=${SLUICE_MODELS:-$cache/models}
exec "$cache/peers/onnxruntime/bin/python" bench/peers/onnx_models.py "$@"
