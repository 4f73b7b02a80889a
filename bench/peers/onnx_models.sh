#!/usr/bin/env bash
# The OCR recogniser and the speech detector that scripts/fetch-models.sh brings, in Sluice and in ONNX Runtime: are the
# outputs equal, are lines read equally well, which is faster (interleaved, medians).
#
#   bench/peers/onnx_models.sh                      both
#   bench/peers/onnx_models.sh ocr --threads 1 --out /tmp/report.json
#
# Python packages go into a virtual environment under ~/.cache/sluice (or $SLUICE_CACHE). Debian packages that it needs:
# python3-venv fonts-dejavu-core, and a build of engine-only.
set -euo pipefail
cd "$(dirname "$0")/../.."

cache=${SLUICE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice}
environment=$cache/onnx-models-venv
if [ ! -x "$environment/bin/python" ]; then
  mkdir -p "$cache"
  python3 -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
    onnxruntime==1.32.0 numpy pillow==13.0.0
fi
export SLUICE_MODELS=${SLUICE_MODELS:-$cache/models}
exec "$environment/bin/python" bench/peers/onnx_models.py "$@"
