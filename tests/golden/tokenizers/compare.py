#!/usr/bin/env python3
"""Compares Sluice's tokenizers with the Python library `tokenizers` on text of your own, line by line.

    compare.py TOOL TOKENIZER.json [--special] [--offsets] [--decode] [--documents] FILE...
    compare.py TOOL TOKENIZER.json --code-points

TOOL is build/.../bin/tokenize_lines. Files are read as bytes; broken UTF-8 becomes U+FFFD on both sides. --documents takes
each file as one text. --code-points tries every code point between letters and between blanks. Needs
`pip install tokenizers`.
"""
import struct
import subprocess
import sys

from tokenizers import Tokenizer


def run(tool, tokenizer, texts, options):
    records = b"".join(struct.pack("<I", len(t)) + t for t in texts)
    done = subprocess.run([tool, tokenizer, *options], input=records, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode().split("\n")


def char_ends(text):
    """Byte position of each character of `text`, and of its end."""
    at, places = 0, [0]
    for c in text:
        at += len(c.encode())
        places.append(at)
    return places


def compare(tool, path, texts, flags, report=10):
    """Number of differing texts."""
    reference = Tokenizer.from_file(path)
    reference.no_truncation()
    reference.no_padding()
    texts = [t.decode("utf-8", "replace").encode() for t in texts] if "--offsets" in flags else texts
    lines = run(tool, path, texts, [f for f in flags if f.startswith("--")])
    step = 1 + ("--offsets" in flags) + ("--decode" in flags)
    wrong = dict(ids=0, offsets=0, decode=0)
    for begin in range(0, len(texts), 2000):
        strings = [t.decode("utf-8", "replace") for t in texts[begin:begin + 2000]]
        encodings = reference.encode_batch(strings, add_special_tokens="--special" in flags)
        for k, (string, encoding) in enumerate(zip(strings, encodings)):
            at = (begin + k) * step
            ids = [int(i) for i in lines[at].split()]
            bad = []
            if ids != encoding.ids:
                bad.append(("ids", encoding.ids, ids))
            if "--offsets" in flags:
                at += 1
                places = char_ends(string)
                expected = [(places[a], places[b]) for a, b in encoding.offsets]
                found = [tuple(map(int, r.split(":"))) for r in lines[at].split()]
                if expected != found and not bad:
                    bad.append(("offsets", expected, found))
            if "--decode" in flags:
                at += 1
                expected = reference.decode(encoding.ids, skip_special_tokens=False)
                found = bytes.fromhex(lines[at]).decode()
                if expected != found and not bad:
                    bad.append(("decode", expected, found))
            for kind, expected, found in bad:
                wrong[kind] += 1
                if sum(wrong.values()) <= report:
                    n = next((i for i, (a, b) in enumerate(zip(expected, found)) if a != b), min(len(expected), len(found)))
                    print(f"{kind} of {string[:80]!r}: at {n} expected {expected[n:n + 8]} found {found[n:n + 8]}")
    return wrong


def code_points():
    block = 32
    for first in range(0, 0x110000, block):
        chars = [chr(c) for c in range(max(first, 1), first + block) if not 0xD800 <= c < 0xE000]
        yield "".join(f"a{c}b {c} x" for c in chars).encode()


def main(arguments):
    flags = [a for a in arguments[2:] if a.startswith("--")]
    files = [a for a in arguments[2:] if not a.startswith("--")]
    texts = []
    if "--code-points" in flags:
        texts = list(code_points())
    for name in files:
        with open(name, "rb") as file:
            data = file.read()
        texts += [data] if "--documents" in flags else data.split(b"\n")
    flags = [f for f in flags if f in ("--special", "--offsets", "--decode")]
    wrong = compare(arguments[0], arguments[1], texts, flags)
    print(f"{arguments[1]}: {len(texts)} texts, {sum(map(len, texts))} bytes, differing: {wrong}")
    return 1 if any(wrong.values()) else 0


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
