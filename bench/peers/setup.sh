#!/usr/bin/env bash
# Installs peers to measure against, into $SLUICE_CACHE/peers (default: ~/.cache/sluice/peers); a second run costs nothing.
#
#   bench/peers/setup.sh onnxruntime   ONNX Runtime from PyPI, in a virtual environment of its own
#   bench/peers/setup.sh libtorch      Debian's python3-torch, the LibTorch that Sluice trains with
#   bench/peers/setup.sh llama-cpp     llama.cpp as npm's node-llama-cpp has it, prebuilt
set -euo pipefail

root=${SLUICE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice}/peers
mkdir -p "$root"
apt() {
  local root_command=()
  [ "$(id -u)" = 0 ] || root_command=(sudo)
  "${root_command[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
}

for peer in "${@:-help}"; do
  case $peer in
    onnxruntime)
      if ! [ -e "$root/onnxruntime/.complete-2" ]; then  # 2: with pillow
        python3 -c 'import venv, ensurepip' 2>/dev/null || apt python3-venv
        rm -rf "$root/onnxruntime"
        python3 -m venv "$root/onnxruntime"
        "$root/onnxruntime/bin/pip" --disable-pip-version-check install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6 \
          pillow==13.0.0
        touch "$root/onnxruntime/.complete-2"
      fi
      echo "peers: $root/onnxruntime"
      ;;
    libtorch)
      /usr/bin/python3 -c 'import torch' 2>/dev/null || apt python3-torch
      echo "peers: torch $(/usr/bin/python3 -c 'import torch; print(torch.__version__)') of /usr/bin/python3"
      ;;
    llama-cpp)
      if ! [ -e "$root/llama-cpp/.complete" ]; then
        command -v npm >/dev/null || apt npm
        rm -rf "$root/llama-cpp"
        mkdir "$root/llama-cpp"
        # Without the GPU builds (600 MB), without building anything.
        (cd "$root/llama-cpp" && echo '{"private": true, "type": "module"}' >package.json &&
          npm install --silent node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1 --omit=optional --ignore-scripts)
        touch "$root/llama-cpp/.complete"
      fi
      echo "peers: $root/llama-cpp"
      ;;
    -h | --help | help) sed -n '2,6s/^# \{0,1\}//p' "$0" ;;
    *)
      echo "setup.sh: unknown peer '$peer'; known: onnxruntime, libtorch, llama-cpp" >&2
      exit 2
      ;;
  esac
done
