#!/usr/bin/env python3
"""Takes the photographs out of unpacked packages: RGB or grey PNG files and a manifest with their sources and licences.

Called by scripts/data.sh photos. --packages holds the unpacked packages by name; Pillow is found through PYTHONPATH.
"""
import argparse
import json
import pathlib

from PIL import Image

SKIMAGE = "scikit-image 0.19.3 (PyPI)", "BSD-3-Clause, public domain or CC0, by picture: skimage/data/README.txt"
SKLEARN = "scikit-learn 1.2.2 (PyPI)", "CC BY 2.0: sklearn/datasets/images/README.txt"
DARKNET = "darknet (Debian)", "public domain"
VISP = "visp-images-data (Debian)", "GPL-2+"
SOURCES = [
    ("skimage/skimage/data", "*.png", SKIMAGE, """astronaut brick camera chelsea coffee coins grass gravel ihc moon
        motorcycle_left""".split()),
    ("skimage/skimage/data", "*.jpg", SKIMAGE, "hubble_deep_field retina rocket".split()),
    ("sklearn/sklearn/datasets/images", "*.jpg", SKLEARN, "china flower".split()),
    ("darknet/usr/share/darknet/data", "*.jpg", DARKNET, "dog eagle giraffe horses kite person".split()),
]
FRAMES = "visp-images-data/usr/share/visp-images-data/ViSP-images/mbt/cube"
EVERY = 20  # frames of the sequence


def save(picture: Image.Image, path: pathlib.Path, name: str, source: tuple, manifest: list) -> None:
    picture = picture.convert("L" if picture.mode in ("L", "I;16", "1") else "RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    manifest.append({"file": name, "width": picture.width, "height": picture.height, "package": source[0],
                     "licence": source[1]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    manifest: list = []
    for folder, pattern, source, names in SOURCES:
        for name in names:
            picture = Image.open(arguments.packages / folder / pattern.replace("*", name))
            save(picture, arguments.output / f"{name}.png", f"{name}.png", source, manifest)
    for frame in sorted((arguments.packages / FRAMES).glob("image*.pgm"))[::EVERY]:
        name = f"sequence/{frame.stem}.png"
        save(Image.open(frame), arguments.output / name, name, VISP, manifest)
    (arguments.output / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
