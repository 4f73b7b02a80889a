#!/usr/bin/env python3
"""What `sluice export --format onnx` writes, in ONNX Runtime: does it load, and are the outputs those of Sluice?

  scripts/fetch-models.sh
  bench/peers/setup.sh onnxruntime
  bench/peers/exported_onnx.py

Real models are imported, exported and run by both: the three networks of PP-OCRv4, Silero VAD with its state, MiniLM on
texts of several lengths; and, where this build trains, a convolutional network. Then every case of ONNX's node tests
that the importer reads, exported again (`onnx_conformance --export`). Largest difference over the largest output; of
models that came as ONNX also the difference between the file that came and the file that went out. The bound is 1e-5. The
networks of PP-OCRv4 are deep: their two files are held to it in float64, where the machine makes no difference and what is
left is the rounding of folded norms to f32; in f32 the bound is 1e-4, since how engines round depends on the vector
instructions: with AVX2 alone the detector is 3.8e-5 apart (Sluice 3.4e-5 from float64), with AVX-512 2.7e-5.

Exit 0: all within the bounds; 1: some not; 77: ONNX Runtime, or a build of Sluice, is not there."""
import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CACHE = os.environ.get("SLUICE_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "sluice")
BOUND = 1e-5  # of the largest output
ENGINES = 1e-4  # of f32 on deep networks of pictures
SKIPPED = 77

PYTHON = os.path.join(CACHE, "peers/onnxruntime/bin/python")
if __name__ == "__main__" and os.path.realpath(sys.prefix) != os.path.realpath(os.path.dirname(os.path.dirname(PYTHON))):
    if not os.path.exists(os.path.join(CACHE, "peers/onnxruntime/.complete-2")):
        print("exported_onnx.py: skipped: no ONNX Runtime; get it with bench/peers/setup.sh onnxruntime")
        sys.exit(SKIPPED)
    os.execv(PYTHON, [PYTHON, os.path.abspath(__file__), *sys.argv[1:]])

import numpy as np
import onnxruntime

sys.path.insert(0, HERE)
import ocr
import sluice_library
import text_lines


def session(path, threads=1):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def relative(a, b):
    """Largest difference over the largest number of b."""
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    finite = np.abs(b[np.abs(b) < 3e38])
    same = (a == b) | (np.isnan(a) & np.isnan(b)) | ((np.abs(a) > 3e38) & (np.abs(b) > 3e38) & (a * b > 0))
    if same.all():
        return 0.0
    return float(np.abs(a - b)[~same].max() / max(finite.max(initial=0), 1e-3))


class Checks:
    def __init__(self):
        self.failed, self.run = [], 0

    def add(self, name, value, bound=BOUND, more=""):
        self.run += 1
        bad = not value <= bound
        if bad:
            self.failed.append(name)
        print(f"{'FAILED' if bad else 'ok    '} {name}: {value:.2e} <= {bound:.0e}{more}", flush=True)


def sluice(args, *arguments):
    subprocess.run([args.sluice, *arguments, "--quiet", "--json"], check=True, stdout=subprocess.DEVNULL)


def there_and_back(args, work, name, source, *arguments):
    """Bundle and exported file of a model."""
    bundle, exported = os.path.join(work, name + ".safetensors"), os.path.join(work, name + ".onnx")
    sluice(args, "import", source, "-o", bundle, *arguments)
    sluice(args, "export", bundle, "-o", exported, "--format", "onnx")
    return bundle, exported


def pictures(args, work, checks):
    """The networks of PP-OCRv4."""
    for name, file, shape in (("ocr-recogniser", "ch_PP-OCRv4_rec_infer.onnx", (1, 3, 48, 320)),
                              ("ocr-angle", "ch_ppocr_mobile_v2.0_cls_infer.onnx", (1, 3, 48, 192)),
                              ("ocr-detector", "ch_PP-OCRv4_det_infer.onnx", (1, 3, 160, 160))):
        source = os.path.join(args.models, "ocr", file)
        if not os.path.exists(source):
            print(f"skipped {name}: scripts/fetch-models.sh ocr")
            continue
        bundle, exported = there_and_back(args, work, name, source, "--input", "x=" + "x".join(map(str, shape)))
        before, after = session(source), session(exported)
        x = text_lines.as_input(text_lines.lines(1)[0][1])
        x = np.ascontiguousarray(np.concatenate([x, x, x, x], 2)[:, :, :shape[2], :shape[3]])  # lines below each other
        first, second = before.run(None, {"x": x})[0], after.run(None, {after.get_inputs()[0].name: x})[0]
        network = sluice_library.Network(bundle, 1, 1, sequences=False)
        mine = network.run(x, np.zeros(first.shape, np.float32))
        # In float64 no rounding hides what got lost; f32 moves deep networks by itself.
        truth = ocr.in_double(source)(x)
        checks.add(f"{name}, the file that went out beside the one that came, in float64",
                   relative(ocr.in_double(exported)(x), truth), BOUND)
        said = (f" (ONNX Runtime on the file that came is {relative(first, truth):.1e} from float64, on the one that went "
                f"out {relative(second, truth):.1e}, Sluice {relative(mine, truth):.1e})")
        checks.add(f"{name}, the file that went out beside the one that came, both in ONNX Runtime",
                   relative(second, first), ENGINES, said)
        checks.add(f"{name}, Sluice beside ONNX Runtime on the exported file", relative(mine, second), ENGINES)
        two = after.run(None, {after.get_inputs()[0].name: np.concatenate([x, -x])})[0]
        checks.add(f"{name}, batch of 2", relative(two[:1], second))


def detector(args, work, checks):
    """Silero VAD: what a session of Sluice carries is an input and an output of the file."""
    source = os.path.join(args.models, "vad", "silero_vad_16k_op15.onnx")
    if not os.path.exists(source):
        print("skipped vad: scripts/fetch-models.sh vad")
        return
    bundle, exported = there_and_back(args, work, "vad", source, "--input", "input=1x576", "--input", "state=2x1x128",
                                      "--value", "sr=16000", "--carry", "state=stateN")
    after, network = session(exported), sluice_library.Network(bundle, 1, 1, sequences=False)
    names = {i.name: [d if isinstance(d, int) else 1 for d in i.shape] for i in after.get_inputs()}
    state = np.zeros(names["state"], np.float32)
    noise, worst = np.random.default_rng(1), 0.0
    for _ in range(20):
        x = noise.normal(0, 0.2, names["input"]).astype(np.float32)
        outputs = dict(zip([o.name for o in after.get_outputs()], after.run(None, {"input": x, "state": state})))
        state = next(v for v in outputs.values() if v.size == state.size).reshape(state.shape)
        theirs = next(v for v in outputs.values() if v.size == 1)
        worst = max(worst, relative(network.run(x, np.zeros(1, np.float32)), theirs))
    checks.add("vad, 20 frames with state", worst)


def encoder(args, work, checks):
    source = os.path.join(args.models, "minilm")
    if not os.path.exists(source):
        print("skipped minilm: scripts/fetch-models.sh minilm")
        return
    bundle, exported = there_and_back(args, work, "minilm", source)
    after = session(exported)
    network, numbers = sluice_library.Network(bundle, 1, 1), np.random.default_rng(1)
    for tokens in (1, 7, 128):
        ids = [101] + numbers.integers(1000, 29000, tokens - 1).tolist()
        theirs = after.run(None, {"tokens": np.array([ids], np.int64)})[0]
        network.prepare([ids], theirs.size)()
        checks.add(f"minilm, {tokens} tokens", relative(list(network.output), theirs))
        pair = after.run(None, {"tokens": np.array([ids, ids[::-1]], np.int64)})[0]
        checks.add(f"minilm, 2 texts of {tokens} tokens", relative(pair[0], theirs[0]))


def trained(args, work, checks):
    """A residual network that this build trains for a moment."""
    if subprocess.run([args.sluice, "train", "--help"], capture_output=True).returncode != 0:
        print("skipped resnet: this build does not train")
        return
    for name, more in (("blobs", []), ("blobs-folded", ["--pass", "fold-norm"])):
        bundle, exported = os.path.join(work, name + ".safetensors"), os.path.join(work, name + ".onnx")
        if more:
            sluice(args, "transform", os.path.join(work, "blobs.safetensors"), "-o", bundle, *more)
        else:
            sluice(args, "train", os.path.join(ROOT, "configs/blobs-tiny.toml"), "-o", bundle)
        sluice(args, "export", bundle, "-o", exported, "--format", "onnx")
        after = session(exported)
        shape = [1, *after.get_inputs()[0].shape[1:]]
        x = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
        theirs = after.run(None, {after.get_inputs()[0].name: x})[0]
        network = sluice_library.Network(bundle, 1, 1, sequences=False)
        checks.add(f"{name}, a trained convolutional network", relative(network.run(x, np.zeros_like(theirs)), theirs))


def node_cases(args, work, checks):
    program = os.path.join(args.build, "bin/onnx_conformance")
    if not os.path.exists(program):
        print("skipped node tests: no onnx_conformance in this build")
        return
    folder = os.path.join(work, "cases")
    os.mkdir(folder)
    done = subprocess.run([program, "--export", folder], capture_output=True, text=True)
    if done.returncode == SKIPPED:
        print("skipped node tests: scripts/deps.sh test installs libonnx-testdata")
        return
    refused, worst, count = {}, 0.0, 0
    for path in sorted(glob.glob(folder + "/*/case.json")):
        name, case = path.split("/")[-2], json.load(open(path))
        if "refused" in case:
            refused.setdefault(case["refused"].split("): ", 1)[-1], []).append(name)
            continue
        array = lambda v: np.fromfile(os.path.join(os.path.dirname(path), v["file"]), np.float32)
        count += 1
        try:
            after = session(os.path.join(os.path.dirname(path), "model.onnx"))
            kinds = {i.name: np.int64 if "int64" in i.type else np.float32 for i in after.get_inputs()}
            feed = {v["name"]: array(v).reshape([1, *v["shape"]]).astype(kinds[v["name"]])
                    for v in case["inputs"]}
            outputs = after.run(None, feed)
        except Exception as error:  # said per case, and the others go on
            checks.failed.append(name)
            print(f"FAILED {name}: {str(error)[:200]}", flush=True)
            continue
        for value, theirs in zip(case["outputs"], outputs):
            difference = relative(array(value), theirs)
            worst = max(worst, difference)
            if list(theirs.shape[1:]) != value["shape"] or not difference <= BOUND:
                checks.failed.append(name)
                print(f"FAILED {name}: {difference:.2e}, {list(theirs.shape)} for {value['shape']}", flush=True)
    print(f"node tests: {count} exported, largest difference {worst:.2e}; refused: "
          f"{sum(map(len, refused.values()))}")
    for reason, names in sorted(refused.items()):
        print(f"  {len(names):3d} {reason} ({names[0]})")
    checks.run += count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["pictures", "detector", "encoder", "trained", "node_cases"])
    parser.add_argument("--build", help="build folder; default: build/release, then build/engine-only")
    parser.add_argument("--models", default=os.path.join(CACHE, "models"))
    args = parser.parse_args()
    builds = [args.build] if args.build else [os.path.join(ROOT, "build", b) for b in ("release", "engine-only")]
    args.build = next((b for b in builds if os.path.exists(os.path.join(b, "sluice"))), None)
    if not args.build:
        print("exported_onnx.py: skipped: no sluice; build it with scripts/build.sh engine-only")
        return SKIPPED
    args.sluice = os.path.join(args.build, "sluice")
    found = glob.glob(os.path.join(args.build, "lib/**/libsluice.so"), recursive=True)
    if found:
        os.environ.setdefault("SLUICE_LIBRARY", os.path.abspath(found[0]))
    checks = Checks()
    with tempfile.TemporaryDirectory() as work:
        for name in args.what:
            globals()[name](args, work, checks)
    print(f"{checks.run} checks, {len(checks.failed)} failed")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
