"""Lines of text as pictures, for recognisers: words of the licences that every Debian system has, in its fonts, the same
ones for the same seed. Used by ocr.py and onnx_models.py."""
import glob
import os
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HEIGHT, WIDTH = 48, 320
FONTS = ["dejavu/DejaVuSans", "dejavu/DejaVuSerif", "dejavu/DejaVuSansMono", "dejavu/DejaVuSans-Bold",
         "liberation2/LiberationSans-Regular", "liberation2/LiberationSerif-Regular", "liberation2/LiberationSans-Italic",
         "liberation2/LiberationMono-Regular", "freefont/FreeSans", "freefont/FreeSerif"]
FONT_FOLDER = "/usr/share/fonts/truetype"
TEXTS = "/usr/share/common-licenses"
# What lines to learn from are made of; all others are for measuring.
TRAINING_TEXTS = ("Apache-2.0", "Artistic", "GFDL-1.2", "MPL-1.1", "MPL-2.0")


def fonts():
    """Files of the fonts that are installed: fonts-dejavu-core, fonts-liberation2, fonts-freefont-ttf."""
    return [p for p in (os.path.join(FONT_FOLDER, f + ".ttf") for f in FONTS) if os.path.exists(p)]


def words(training=False):
    found = []
    for path in sorted(glob.glob(TEXTS + "/*")):
        if os.path.islink(path) or (os.path.basename(path) in TRAINING_TEXTS) != training:
            continue
        with open(path, encoding="utf-8", errors="replace") as file:
            found += [w.strip('"\'`,.;:()<>[]*') for w in file.read().split()]
    return [w for w in found if w and len(w) < 14 and w.isascii() and any(c.isalnum() for c in w)]


def lines(count, seed=1, training=False):
    """(text, picture) of one to three words that follow each other somewhere, as far as they fit: font, size and greys
    drawn at random."""
    numbers, all_words, faces = random.Random(seed), words(training), fonts()
    if not faces:
        raise SystemExit("text_lines.py: no fonts; install fonts-dejavu-core")
    loaded = {}
    result = []
    while len(result) < count:
        at, length = numbers.randrange(len(all_words) - 3), numbers.randint(1, 3)
        path, size = numbers.choice(faces), numbers.choice((20, 22, 24, 26))
        ink, paper = numbers.randrange(0, 90), numbers.randrange(200, 256)
        line = " ".join(all_words[at:at + length])
        face = loaded.setdefault((path, size), ImageFont.truetype(path, size))
        left, _, right, _ = face.getbbox(line)
        if (right - left + 16) * HEIGHT > WIDTH * (HEIGHT - 8):
            continue  # it would be squeezed
        image = Image.new("RGB", (right - left + 16, HEIGHT - 8), (paper,) * 3)
        ImageDraw.Draw(image).text((8 - left, 4), line, font=face, fill=(ink,) * 3)
        result.append((line, image))
    return result


def as_input(image):
    """[1,3,48,320] as PP-OCRv4 takes it: blue, green, red, from -1 to 1, nothing behind the line."""
    width = min(WIDTH, -(-HEIGHT * image.width // image.height))
    pixels = np.asarray(image.resize((width, HEIGHT), Image.BILINEAR), np.float32)[:, :, ::-1]
    x = np.zeros((1, 3, HEIGHT, WIDTH), np.float32)
    x[0, :, :, :width] = (pixels.transpose(2, 0, 1) / 255 - 0.5) / 0.5
    return x


def read_labels(path):
    """By class: nothing, the characters of the file, a space."""
    with open(path, encoding="utf-8") as file:
        return [""] + file.read().rstrip("\n").split("\n") + [" "]


def decode(output, labels):
    best, text, before = output.argmax(-1), "", 0
    for i in best:
        if i != 0 and i != before:
            text += labels[i]
        before = i
    return text


def edits(a, b):
    """Least number of characters to put in, take out or change."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        before, row[0] = row[0], i + 1
        for j, y in enumerate(b):
            before, row[j + 1] = row[j + 1], min(row[j + 1] + 1, row[j] + 1, before + (x != y))
    return row[-1]
