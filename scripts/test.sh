#!/usr/bin/env bash
# Everything that must hold before a change goes in: formatting, all unit and process tests, the build without LibTorch,
# the sanitizers, a minute of fuzzing. Stops at the first stage that fails; the release tests come last. Pretrained models
# are fetched first (scripts/fetch-models.sh); tests whose model cannot be had are skipped and named at the end.
#
#   scripts/test.sh            all stages
#   scripts/test.sh release    some of: format engine-only asan fuzz release
set -euo pipefail
cd "$(dirname "$0")/.."

jobs=${SLUICE_JOBS:-2}
stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(format engine-only asan fuzz release)
begun=$SECONDS
stage="start"
trap 'code=$?; rm -f "${skipped:-}"; [ $code = 0 ] || echo "test.sh: stage \"$stage\" FAILED after $((SECONDS - stage_begun)) s" >&2' EXIT
stage_begun=$SECONDS

begin() {
  stage=$1
  stage_begun=$SECONDS
  echo "==== $stage"
}
finish() { echo "==== $stage: $((SECONDS - stage_begun)) s"; }

wants() {
  local wanted
  for wanted in "${stages[@]}"; do
    [ "$wanted" != "$1" ] || return 0
  done
  return 1
}

skipped=$(mktemp)
run_ctest() {
  local log
  log=$(mktemp)
  ctest --test-dir "build/$1" --output-on-failure -j "$jobs" "${@:2}" | tee "$log"
  sed -n "s/^[[:space:]]*[0-9]* - \(.*\) (Skipped)$/  $1: \1/p" "$log" >>"$skipped"
  rm -f "$log"
}

for wanted in "${stages[@]}"; do
  case $wanted in
    format | engine-only | asan | fuzz | release) ;;
    *)
      echo "test.sh: unknown stage '$wanted'; expected format, engine-only, asan, fuzz or release" >&2
      exit 2
      ;;
  esac
done

begin "packages"
groups=(build data test)
! wants fuzz || groups+=(fuzz)
scripts/deps.sh "${groups[@]}"
finish

if wants engine-only || wants asan || wants release; then
  begin "models"
  scripts/fetch-models.sh
  finish
fi

if wants format; then
  begin "format"
  # Other versions of clang-format break lines elsewhere.
  if command -v clang-format >/dev/null && clang-format --version | grep -q 'version 14\.'; then
    git ls-files -z '*.h' '*.cpp' '*.cc' '*.c' | xargs -0 clang-format --dry-run -Werror
  else
    echo "clang-format 14 is not installed: formatting is not checked"
  fi
  finish
fi

# The long build comes early: most mistakes show there.
if wants release; then
  begin "build release"
  scripts/build.sh release
  finish
fi

if wants engine-only; then
  begin "build engine-only"
  scripts/build.sh engine-only
  finish
  # Its libraries are compiled as those of release are, whose tests run below; what differs is the command line and the C
  # library, and that no test of theirs finds LibTorch.
  begin "test engine-only"
  run_ctest engine-only -L process
  finish
fi

if wants asan; then
  begin "build with sanitizers"
  scripts/build.sh asan
  finish
  begin "test with sanitizers"
  UBSAN_OPTIONS=print_stacktrace=1 run_ctest asan
  finish
fi

if wants fuzz; then
  begin "build fuzzers"
  scripts/build.sh fuzz fuzzers
  finish
  begin "fuzz"
  found=$(mktemp -d)
  for fuzzer in build/fuzz/bin/*_fuzz; do
    name=$(basename "$fuzzer" _fuzz)
    seconds=10
    [ "$name" != bundle ] || seconds=60
    mkdir -p "$found/$name"
    inputs=("$found/$name")
    [ ! -d "fuzz/corpus/$name" ] || inputs+=("fuzz/corpus/$name")
    options=(-max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -print_final_stats=1
      -artifact_prefix="$found/$name-")
    [ ! -f "fuzz/$name.dict" ] || options+=(-dict="fuzz/$name.dict")
    "$fuzzer" "${options[@]}" "${inputs[@]}" >"$found/$name.log" 2>&1 || {
      tail -n 60 "$found/$name.log" >&2
      echo "test.sh: $name found a failing input, kept in $found" >&2
      exit 1
    }
    echo "$name: $seconds s, $(sed -n 's/^stat::number_of_executed_units: *//p' "$found/$name.log") inputs"
  done
  rm -rf "$found"
  finish
fi

if wants release; then
  begin "test release"
  run_ctest release
  finish
fi
if [ -s "$skipped" ]; then
  echo "test.sh: skipped, because something they need is not here (each says what):"
  sort -u "$skipped"
fi
echo "test.sh: all stages passed in $((SECONDS - begun)) s"
