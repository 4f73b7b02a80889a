#!/usr/bin/env python3
"""Makes the retrieval test set of encoder measurements from text that Debian packages hold, in the layout of BEIR:

  FOLDER/corpus.jsonl     {"_id", "title", "text"}
  FOLDER/queries.jsonl    {"_id", "text"}
  FOLDER/qrels.tsv        query-id, corpus-id, score, with a heading
  FOLDER/source.json      packages, their versions, counts, checksums

  scripts/make-retrieval-set.py FOLDER           the whole set: 4,941 documents, 600 queries
  scripts/make-retrieval-set.py FOLDER --tiny    for tests: 300 documents, 60 queries
  scripts/make-retrieval-set.py FOLDER --others FILE
                                                 also text to tune encoders on, a sample a line: WordNet's other
                                                 meanings and the Python documentation outside the library reference

Three kinds, a third of the queries each, all documents in one corpus:
  wordnet   the words of a meaning -> its gloss                                     (wordnet-base)
  python    first sentence of a function or class -> the rest, with its name        (python3.11-doc)
  man       the line that says what a page is about -> the beginning of the page    (manpages, manpages-dev)

A query's answer does not contain the query. The same packages give the same bytes: entries are chosen by the hash of
their names. The packages are downloaded with apt-get and unpacked, not installed; --from FOLDER takes an unpacked tree
instead. Python's standard library is all that is needed."""
import argparse
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile

PACKAGES = ["wordnet-base", "python3.11-doc", "manpages", "manpages-dev"]
SIZES = {False: {"documents": 2000, "queries": 200}, True: {"documents": 100, "queries": 20}}
LONGEST = 1200  # characters of a document


def order(name):
    return hashlib.sha256(name.encode()).hexdigest()


def squeeze(text):
    return re.sub(r"\s+", " ", text).strip()


def wordnet(root):
    for part in ("noun", "verb", "adj", "adv"):
        with open(os.path.join(root, "usr/share/wordnet", "data." + part), encoding="utf-8") as file:
            for line in file:
                if line.startswith("  "):
                    continue
                fields, gloss = line.split(" | ", 1)
                fields = fields.split()
                count = int(fields[3], 16)
                words = [re.sub(r"\(\w+\)$", "", w).replace("_", " ") for w in fields[4:4 + 2 * count:2]]
                definition = squeeze(gloss.split('; "')[0].split('"')[0]).rstrip(";")
                # One word is often ambiguous, and a gloss that repeats it too easy.
                if count < 2 or len(definition) < 30 or any(w.lower() in definition.lower() for w in words):
                    continue
                yield f"wordnet-{part}-{fields[0]}", ", ".join(words), "", definition


def plain_rst(text):
    text = re.sub(r":[a-z:]+:`([^`<]*?)(?:\s*<[^`]*>)?`", lambda m: m.group(1).lstrip("~!."), text)
    return squeeze(text.replace("``", "").replace("*", ""))


def python_docs(root):
    folder = os.path.join(root, "usr/share/doc/python3.11/html/_sources/library")
    if not os.path.isdir(folder):
        folder = os.path.join(root, "usr/share/doc/python3.11/_sources/library")
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            lines = file.read().split("\n")
        module = name.split(".rst")[0]
        for i, line in enumerate(lines):
            found = re.match(r"^( *)\.\. (?:function|class|method|classmethod|staticmethod):: *([^(\s]+)", line)
            if not found:
                continue
            indent, body = len(found.group(1)), []
            for other in lines[i + 1:]:
                if other.strip() and len(other) - len(other.lstrip()) <= indent:
                    break
                body.append(other)
            while body and body[0].strip():  # further signatures
                del body[0]
            paragraphs = re.split(r"\n\s*\n", "\n".join(body))
            prose = [plain_rst(p) for p in paragraphs
                     if p.strip() and not p.lstrip().startswith((".. ", ":", ">>>", "+", "|", "=", "*", "-"))]
            text = " ".join(prose)
            first = re.match(r"(.{30,}?[.:])\s+(?=[A-Z])(.*)$", text)
            if not first or len(first.group(2)) < 80 or len(first.group(1)) > 300:
                continue
            yield f"python-{module}-{found.group(2)}", first.group(1), f"{module}: {found.group(2)}", first.group(2)


def plain_roff(text):
    kept = []
    for line in text.split("\n"):
        if line.startswith((".\\\"", "'\\\"", "\\\"")):
            continue
        macro = re.match(r"^[.']\s*(\w+)\s*(.*)$", line)
        if macro:
            name, rest = macro.groups()
            if name in ("B", "I", "R", "BR", "BI", "IR", "RB", "RI", "IB", "SM", "SB"):
                words = re.findall(r'"([^"]*)"|(\S+)', rest)
                words = [a or b for a, b in words]
                kept.append(("" if len(name) == 2 and name != "SM" else " ").join(words))
            continue
        if not line.startswith("."):
            kept.append(line)
    text = "\n".join(kept)
    text = re.sub(r"\\f(\(..|\[[^\]]*\]|.)", "", text)
    text = re.sub(r"\\s[-+]?\d", "", text)
    text = text.replace("\\-", "-").replace("\\&", "").replace("\\ ", " ").replace("\\e", "\\").replace("\\(aq", "'")
    text = re.sub(r"\\\((..)|\\\[[^\]]*\]|\\\*\(..|\\.", " ", text)
    return squeeze(text)


def man_pages(root):
    folder = os.path.join(root, "usr/share/man")
    for section in ("man2", "man3", "man4", "man5", "man7"):
        for name in sorted(os.listdir(os.path.join(folder, section))):
            path = os.path.join(folder, section, name)
            if os.path.islink(path) or not name.endswith(".gz"):
                continue
            with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
                page = file.read()
            sections = dict(re.findall(r'^\.SH +"?([^"\n]+?)"?\n(.*?)(?=^\.SH|\Z)', page, re.M | re.S))
            about = plain_roff(sections.get("NAME", ""))
            text = plain_roff(sections.get("DESCRIPTION", ""))
            if " - " not in about or len(text) < 80:
                continue
            query = about.split(" - ", 1)[1]
            if len(query) < 12 or query.lower() in text[:LONGEST].lower():
                continue
            yield f"man-{name[:-3]}", query, "", text


def other_text(tree, taken):
    """Lines for learning: nothing of them is a document or a query of the set. Shuffled by their hashes."""
    lines = set()
    for identity, words, _, gloss in wordnet(tree):
        if identity not in taken:
            lines.update((words, gloss))
    folder = os.path.join(tree, "usr/share/doc/python3.11/html/_sources")
    if not os.path.isdir(folder):
        folder = os.path.join(tree, "usr/share/doc/python3.11/_sources")
    for part in ("c-api", "extending", "faq", "howto", "reference", "tutorial", "using", "whatsnew"):
        for name in sorted(os.listdir(os.path.join(folder, part))):
            with open(os.path.join(folder, part, name), encoding="utf-8") as file:
                paragraphs = re.split(r"\n\s*\n", file.read())
            lines.update(text for text in (plain_rst(p) for p in paragraphs if not p.lstrip().startswith((".. ", ":", ">>>")))
                         if 30 <= len(text) <= LONGEST and " " in text)
    known = {text.lower() for entry in taken.values() for text in (entry[1], entry[3], entry[3][:LONGEST])}
    return sorted((l for l in lines if l.lower() not in known), key=order)


def choose(entries, documents, queries):
    """The first entries by hash; the first of these are asked for."""
    unique = {}
    for entry in entries:
        unique.setdefault(entry[0], entry)
    # Two entries with one question or one answer would make a right answer count as wrong.
    by_query, by_text, kept = set(), set(), []
    for entry in sorted(unique.values(), key=lambda e: order(e[0])):
        if entry[1].lower() in by_query or entry[3].lower() in by_text:
            continue
        by_query.add(entry[1].lower())
        by_text.add(entry[3].lower())
        kept.append(entry)
        if len(kept) == documents:
            break
    return kept, kept[:queries]


def unpack(folder):
    versions = {}
    for package in PACKAGES:
        done = subprocess.run(["apt-get", "download", "-q", package], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"make-retrieval-set.py: apt-get cannot download {package}: {done.stderr.strip().splitlines()[-1]}")
        archive = next(f for f in os.listdir(folder) if f.startswith(package + "_"))
        subprocess.run(["dpkg-deb", "-x", archive, "tree"], cwd=folder, check=True)
        versions[package] = subprocess.run(["dpkg-deb", "-f", archive, "Version"], cwd=folder, check=True,
                                           capture_output=True, text=True).stdout.strip()
    return os.path.join(folder, "tree"), versions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--from", dest="tree", help="an unpacked tree of the packages")
    parser.add_argument("--others", metavar="FILE", help="write text to tune on, too")
    options = parser.parse_args()
    sizes = SIZES[options.tiny]
    with tempfile.TemporaryDirectory() as temporary:
        tree, versions = (options.tree, None) if options.tree else unpack(temporary)
        corpus, queries = [], []
        counts = {}
        for kind, entries in (("wordnet", wordnet), ("python", python_docs), ("man", man_pages)):
            documents, asked = choose(entries(tree), sizes["documents"], sizes["queries"])
            counts[kind] = {"documents": len(documents), "queries": len(asked)}
            corpus += documents
            queries += asked
        others = other_text(tree, {entry[0]: entry for entry in corpus}) if options.others else []
    os.makedirs(options.folder, exist_ok=True)
    dump = lambda value: json.dumps(value, ensure_ascii=False) + "\n"
    files = {
        "corpus.jsonl": "".join(dump({"_id": i, "title": title, "text": text[:LONGEST]}) for i, _, title, text in corpus),
        "queries.jsonl": "".join(dump({"_id": "q-" + i, "text": query}) for i, query, _, _ in queries),
        "qrels.tsv": "query-id\tcorpus-id\tscore\n" + "".join(f"q-{i}\t{i}\t1\n" for i, *_ in queries)}
    digests = {}
    for name, text in files.items():
        with open(os.path.join(options.folder, name), "w", encoding="utf-8") as file:
            file.write(text)
        digests[name] = hashlib.sha256(text.encode()).hexdigest()
    with open(os.path.join(options.folder, "source.json"), "w", encoding="utf-8") as file:
        json.dump({"packages": versions, "kinds": counts, "sha256": digests}, file, indent=1)
        file.write("\n")
    if options.others:
        with open(options.others, "w", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in others))
        print(f"{options.others}: {len(others)} lines")
    print(f"{options.folder}: {len(corpus)} documents, {len(queries)} queries")


main()
