"""See onnx_models.sh. Sluice runs through its C library, so that both engines run in one process, in turns."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnxruntime

import sluice_library


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
    parser.add_argument("what", nargs="*", default=["vad"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=8.0, help="of timing, each")
    parser.add_argument("--build", default="build/engine-only")
    parser.add_argument("--models", default=os.environ.get("SLUICE_MODELS", ""))
    parser.add_argument("--out", default="", help="also write the report there")
    args = parser.parse_args()
    args.sluice = os.path.join(args.build, "sluice")
    os.environ.setdefault("SLUICE_LIBRARY", os.path.abspath(os.path.join(args.build, "lib/engine/capi/libsluice.so")))
    report = {"command": "bench/peers/onnx_models.sh " + " ".join(sys.argv[1:]),
              "onnxruntime": onnxruntime.__version__, "threads": args.threads,
              "machine": next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "")}
    with tempfile.TemporaryDirectory() as work:
        for name in args.what:
            report[name] = {"vad": vad}[name](args, work)
    text = json.dumps(report, indent=1)
    print(text)
    if args.out:
        with open(args.out, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
