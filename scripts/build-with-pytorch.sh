#!/usr/bin/env bash
# Builds sluice, engine included, against the LibTorch inside PyTorch's pip package: for a GPU machine without a network.
#
#   scripts/build-with-pytorch.sh --pack deps.tar.xz   on a machine with Debian's packages: what the other one lacks, 17 MB
#   tar xJf deps.tar.xz -C DIR                         on the GPU machine
#   SLUICE_DEPS=DIR/deps scripts/build-with-pytorch.sh [BUILD]
#
# BUILD (default build/gpu) then holds sluice; run it with LD_LIBRARY_PATH=$SLUICE_DEPS/usr/lib/x86_64-linux-gnu. The
# package's own copies of fmt and of oneDNN's headers are of other versions than those packed, and are left out. SLUICE_COMMIT is the
# commit that reports name where there is no git; TORCH (default: python3's) the folder of the package.
set -euo pipefail
cd "$(dirname "$0")/.."
system=x86_64-linux-gnu

if [ "${1:-}" = --pack ]; then
  output=$(realpath -m "$2")
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  usr=$work/deps/usr
  mkdir -p "$usr/include" "$usr/lib/$system" "$usr/share/cmake"
  for name in fmt toml++ nlohmann CLI xxhash.h png.h pngconf.h pnglibconf.h libpng16 zlib.h zconf.h unicode pcre2.h hwy oneapi; do
    for folder in /usr/include /usr/include/$system; do
      [ ! -e "$folder/$name" ] || cp -rL "$folder/$name" "$usr/include/"
    done
  done
  cp -L /usr/include/dnnl* "$usr/include/"
  for name in dnnl hwy pcre2-8 icuuc icudata png16 png z; do
    cp -a "/usr/lib/$system/lib$name".so* "$usr/lib/$system/"
  done
  ln -sf libz.so.1 "$usr/lib/$system/libz.so"
  cp -rL /usr/share/cmake/CLI11 /usr/share/cmake/nlohmann_json "$usr/share/cmake/"
  tar -C "$work" -cf - deps | xz -T0 >"$output.part"
  mv "$output.part" "$output"
  exit
fi

[ -n "${SLUICE_DEPS:-}" ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
deps=$(realpath "$SLUICE_DEPS")
build=${1:-build/gpu}
torch=${TORCH:-$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))')}
mkdir -p "$build/torch"
if [ ! -d "$build/torch/include" ]; then
  cp -a "$torch/include" "$build/torch/include.part"
  rm -rf "$build"/torch/include.part/{fmt,oneapi} "$build"/torch/include.part/dnnl*
  mv "$build/torch/include.part" "$build/torch/include"
fi
shim=$(realpath "$build/torch")
cuda=
for folder in "$torch/../nvidia/cu13/include" /usr/local/cuda/include; do
  if [ -z "$cuda" ] && [ -e "$folder/cuda_runtime.h" ]; then cuda=$(realpath "$folder"); fi
done
# NCCL's header wants all of CUDA's, which the pip packages hold only in part.
nccl=$torch/../nvidia/nccl/include
[ ! -e /usr/local/cuda/include/crt/host_config.h ] || nccl="$nccl;/usr/local/cuda/include"
cat >"$shim/TorchConfig.cmake" <<CONFIG
set(TORCH_INSTALL_PREFIX "$torch")
set(Torch_VERSION 2)
set(TORCH_INCLUDE_DIRS "$shim/include;$shim/include/torch/csrc/api/include${cuda:+;$cuda}")
add_library(torch_pip INTERFACE IMPORTED)
# Nothing refers to the CUDA half by name: it registers itself when it is loaded.
set_target_properties(torch_pip PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "\${TORCH_INCLUDE_DIRS}" INTERFACE_LINK_LIBRARIES
  "$torch/lib/libtorch_cpu.so;$torch/lib/libc10.so;-Wl,--no-as-needed;$torch/lib/libtorch_cuda.so;$torch/lib/libc10_cuda.so;-Wl,--as-needed")
set(TORCH_CUDA_LIBRARIES torch_cuda c10_cuda)
set(TORCH_LIBRARIES torch_pip)
set(Torch_FOUND TRUE)
CONFIG
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DSLUICE_TESTS=OFF -DSLUICE_BENCH=OFF -DSLUICE_FAST_BLAS=OFF \
  "-DTorch_DIR=$shim" "-DCMAKE_PREFIX_PATH=$deps/usr" "-DSLUICE_NCCL_INCLUDE=$nccl" \
  ${SLUICE_COMMIT:+"-DSLUICE_COMMIT=$SLUICE_COMMIT"} "-DCMAKE_CXX_FLAGS=-isystem $deps/usr/include" \
  "-DCMAKE_EXE_LINKER_FLAGS=-Wl,--unresolved-symbols=ignore-in-shared-libs"
cmake --build "$build" --target sluice -j "${SLUICE_JOBS:-$(nproc)}"
