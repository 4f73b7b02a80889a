#!/usr/bin/env bash
# The OCR recogniser and the speech detector that scripts/fetch-models.sh brings, in Sluice and in ONNX Runtime: are the
# outputs equal, are lines read equally well, which is faster (interleaved, medians).
#
#   bench/peers/onnx_models.sh                      both
#   bench/peers/onnx_models.sh ocr --threads 1 --out /tmp/report.json
#
# bench/peers/setup.sh onnxruntime installs the rival. Also needed: Debian's fonts-dejavu-core, and a build of engine-only.
set -euo pipefail
cd "$(dirname "$0")/../.."

cache=${SLUICE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice}
bench/peers/setup.sh onnxruntime >&2
export SLUICE_MODELS=${SLUICE_MODELS:-$cache/models}
exec "$cache/peers/onnxruntime/bin/python" bench/peers/onnx_models.py "$@"
