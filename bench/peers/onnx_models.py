"""See onnx_models.sh. Sluice runs through its C library, so that both engines run in one process, in turns."""
import argparse
import difflib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageFont

import sluice_library

FONTS = ["DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "DejaVuSans-Bold.ttf"]
FONT_FOLDER = "/usr/share/fonts/truetype/dejavu"
TEXT = "/usr/share/common-licenses/GPL-3"  # on every Debian system
LINES, HEIGHT, WIDTH = 120, 48, 320


def loaded(path, threads, outputs):
    """A call from an input to the output, which it writes over each time."""
    network, output = sluice_library.Network(path, 1, threads, sequences=False), np.zeros(outputs, np.float32)
    return lambda x: network.run(x, output)


def runtime(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def interleaved(runs, seconds=8.0, most=200):
    """Milliseconds of each, medians over rounds in which all run once; at least 5 rounds."""
    for run in runs.values():
        run()
        run()
    times = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < most:
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
        if time.perf_counter() > end and len(times[name]) >= 5:
            break
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def text_lines():
    words = [w.strip('",.;:()<>') for w in open(TEXT).read().split()]
    words = [w for w in words if w and len(w) < 14 and w.isascii()]
    return [" ".join(words[2 * i:2 * i + 2]) for i in range(LINES)]


def render(line, font):
    face = ImageFont.truetype(os.path.join(FONT_FOLDER, font), 24)
    left, top, right, bottom = face.getbbox(line)
    image = Image.new("RGB", (right - left + 16, HEIGHT - 8), "white")
    ImageDraw.Draw(image).text((8 - left, 4), line, font=face, fill="black")
    return image


def ocr_input(image):
    width = min(WIDTH, -(-HEIGHT * image.width // image.height))
    pixels = np.asarray(image.resize((width, HEIGHT), Image.BILINEAR), np.float32)[:, :, ::-1]
    x = np.zeros((1, 3, HEIGHT, WIDTH), np.float32)
    x[0, :, :, :width] = (pixels.transpose(2, 0, 1) / 255 - 0.5) / 0.5
    return x


def decode(output, labels):
    best, text, before = output.argmax(-1), "", 0
    for i in best:
        if i != 0 and i != before:
            text += labels[i]
        before = i
    return text


def ocr(args, work):
    folder = os.path.join(args.models, "ocr")
    model, keys = os.path.join(folder, "ch_PP-OCRv4_rec_infer.onnx"), os.path.join(folder, "ppocr_keys_v1.txt")
    bundle = os.path.join(work, "ocr.safetensors")
    subprocess.run([args.sluice, "import", model, "-o", bundle, "--input", f"x=1x3x{HEIGHT}x{WIDTH}", "--quiet"],
                   check=True, stdout=subprocess.DEVNULL)
    labels = [""] + open(keys, encoding="utf-8").read().rstrip("\n").split("\n") + [" "]
    rival, outputs = runtime(model, args.threads), None
    outputs = rival.run(None, {"x": np.zeros((1, 3, HEIGHT, WIDTH), np.float32)})[0].shape
    mine = {"sluice": loaded(bundle, args.threads, outputs)}
    for name in args.copies:
        mine[os.path.basename(name)] = loaded(name, args.threads, outputs)
    largest, right, same, errors, characters = 0.0, {}, {}, {}, 0
    for i, line in enumerate(text_lines()):
        x = ocr_input(render(line, FONTS[i % len(FONTS)]))
        expected = rival.run(None, {"x": x})[0]
        characters += len(line)
        read = {"onnxruntime": decode(expected[0], labels)}
        for name, session in mine.items():
            found = session(x)
            if name == "sluice":
                largest = max(largest, float(np.abs(found - expected).max()))
            read[name] = decode(found[0], labels)
        for name, text in read.items():
            right[name] = right.get(name, 0) + (text.rstrip() == line)
            same[name] = same.get(name, 0) + (text == read["onnxruntime"])
            matched = sum(b.size for b in difflib.SequenceMatcher(None, line, text, False).get_matching_blocks())
            errors[name] = errors.get(name, 0) + max(len(line), len(text)) - matched
    times = interleaved({"onnxruntime": lambda: rival.run(None, {"x": x}),
                         **{name: (lambda s=s: s(x)) for name, s in mine.items()}}, args.seconds)
    rows = {name: {"lines_read": right[name], "as_onnxruntime": same[name],
                   "character_errors": round(errors[name] / characters, 4), "ms": round(times[name], 3),
                   "speed_over_onnxruntime": round(times["onnxruntime"] / times[name], 3)} for name in times}
    return {"lines": LINES, "input": [3, HEIGHT, WIDTH], "largest_difference": largest, "arms": rows}


def speech_like(seconds=6):
    """A voiced sound that comes and goes, and noise: what the detector says matters only in that both say it."""
    t = np.arange(int(16000 * seconds)) / 16000
    pitch = 120 + 30 * np.sin(2 * np.pi * 2 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / 16000
    voice = sum(np.sin(k * phase) / k for k in range(1, 20)) * (np.sin(2 * np.pi * 1.5 * t) > 0)
    noise = np.random.default_rng(1).normal(size=t.size)
    return (0.1 * voice + 0.01 * noise).astype(np.float32)


def vad(args, work):
    model = os.path.join(args.models, "vad", "silero_vad_16k_op15.onnx")
    bundle = os.path.join(work, "vad.safetensors")
    subprocess.run([args.sluice, "import", model, "-o", bundle, "--input", "input=1x576", "--input", "state=2x1x128",
                    "--value", "sr=16000", "--carry", "state=stateN", "--quiet"], check=True,
                   stdout=subprocess.DEVNULL)
    rival, mine = runtime(model, 1), loaded(bundle, 1, (1,))
    sound, rate = speech_like(), np.array(16000, np.int64)
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
    largest, frames, speech = 0.0, 0, 0
    for at in range(0, sound.size - 512, 512):
        x = np.concatenate([context, sound[at:at + 512]])[None]
        context = x[0, -64:].copy()
        expected, state = rival.run(None, {"input": x, "state": state, "sr": rate})
        found = mine(x)
        largest = max(largest, float(abs(found[0] - expected[0, 0])))
        frames += 1
        speech += int(found[0] > 0.5)
    times = interleaved({"onnxruntime": lambda: rival.run(None, {"input": x, "state": state, "sr": rate}),
                         "sluice": lambda: mine(x)}, args.seconds, 4000)
    return {"frames": frames, "speech": speech, "largest_difference": largest,
            "arms": {name: {"ms": round(ms, 4), "speed_over_onnxruntime": round(times["onnxruntime"] / ms, 3)}
                     for name, ms in times.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["ocr", "vad"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=8.0, help="of timing, each")
    parser.add_argument("--build", default="build/engine-only")
    parser.add_argument("--models", default=os.environ.get("SLUICE_MODELS", ""))
    parser.add_argument("--copies", nargs="*", default=[], help="further bundles of the recogniser")
    parser.add_argument("--out", default="", help="also write the report there")
    args = parser.parse_args()
    args.sluice = os.path.join(args.build, "sluice")
    os.environ.setdefault("SLUICE_LIBRARY", os.path.abspath(os.path.join(args.build, "lib/engine/capi/libsluice.so")))
    report = {"command": "bench/peers/onnx_models.sh " + " ".join(sys.argv[1:]),
              "onnxruntime": onnxruntime.__version__, "threads": args.threads,
              "machine": next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "")}
    with tempfile.TemporaryDirectory() as work:
        for name in args.what:
            report[name] = {"ocr": ocr, "vad": vad}[name](args, work)
    text = json.dumps(report, indent=1)
    print(text)
    if args.out:
        with open(args.out, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
