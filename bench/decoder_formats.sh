#!/usr/bin/env bash
# Perplexity of a decoder in every format of its weights, beside bits, bytes and speed, in one run of `sluice eval`.
#
#   bench/decoder_formats.sh MODEL.safetensors TEXT OUTPUT.json
#
# TEXT: held-out text. Its first 50,000 bytes calibrate the format that takes calibration (mixed); the rest is scored, so
# that nothing is chosen on what is scored. MAX_TOKENS limits it.
set -euo pipefail
[ $# -eq 3 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
model=$(realpath "$1") text=$(realpath "$2") output=$(realpath -m "$3")
sluice=${SLUICE:-$(cd "$(dirname "$0")/.." && pwd)/build/release/sluice}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
head -c 50000 "$text" | iconv -c -t UTF-8 >"$folder/calibrate.txt"
tail -c +50001 "$text" | iconv -c -t UTF-8 >"$folder/text.txt"
cd "$folder"
models=()
make() { # NAME ARGUMENTS...: the model under another name, transformed
  local name=$1
  shift
  "$sluice" transform "$model" -o "$name.safetensors" "$@" >/dev/null
  models+=("$name.safetensors")
}
cp "$model" f32.safetensors
models+=(f32.safetensors)
for format in bf16 i8 i8-32 i4-32-min i4-32 ternary binary-2 mixed binary; do
  make "$format" --pass quantize --format "$format"
done
make i8-activations-i8 --pass quantize:format=i8,activations=i8
make i4-32-activations-i8 --pass quantize:format=i4-32,activations=i8
make mixed-calibrated --pass quantize --format mixed --calibrate calibrate.txt:64
"$sluice" eval "${models[@]}" --text text.txt ${MAX_TOKENS:+--max-tokens "$MAX_TOKENS"} --json >result.json
cp result.json "$output.part"
mv "$output.part" "$output"
