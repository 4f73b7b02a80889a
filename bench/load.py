#!/usr/bin/env python3
"""How long Sluice takes to open a bundle whose file is in the page cache: from its path to the first possible run, each
time in a process of its own; medians, with the processor's time and the faults of memory beside them.

  scripts/fetch-models.sh minilm
  bench/load.py                          MiniLM in f32, bf16 and i8, models/small.safetensors
  bench/load.py model.safetensors ..."""
import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "bench/peers"))
CACHE = os.environ.get("SLUICE_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "sluice")


def load(path, threads):
    """Wall and processor milliseconds, faults."""
    import sluice_library
    sluice_library.library()
    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    sluice_library.Network(path, 1, threads, last_rows=1 if "small" in path else 0)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(1e3 * wall, 1e3 * busy, after.ru_minflt - before.ru_minflt)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--build", help="build folder; default: build/release, then build/engine-only")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return load(args.bundles[0], args.threads)
    builds = [args.build] if args.build else [os.path.join(ROOT, "build", b) for b in ("release", "engine-only")]
    build = next((b for b in builds if os.path.exists(os.path.join(b, "sluice"))), None)
    if not build:
        sys.exit("load.py: no sluice; build it with scripts/build.sh engine-only")
    os.environ.setdefault("SLUICE_LIBRARY", os.path.abspath(os.path.join(build, "lib/engine/capi/libsluice.so")))
    with tempfile.TemporaryDirectory() as folder:
        bundles = list(args.bundles)
        source = os.path.join(CACHE, "models/minilm")
        if not bundles and os.path.exists(source):
            for kind in ("f32", "bf16", "i8"):
                bundles.append(os.path.join(folder, f"minilm-{kind}.safetensors"))
                subprocess.run([os.path.join(build, "sluice"), "import", source, "-o", bundles[-1], "--dtype", kind, "-q"],
                               check=True, stdout=subprocess.DEVNULL)
        if not args.bundles:
            bundles.append(os.path.join(ROOT, "models/small.safetensors"))
        rows = {path: [] for path in bundles}
        for _ in range(args.rounds):  # in turns
            for path in bundles:
                with open(path, "rb") as file:
                    while file.read(1 << 20):
                        pass
                done = subprocess.run([sys.executable, os.path.abspath(__file__), "--one", "--threads", str(args.threads),
                                       path], check=True, capture_output=True, text=True)
                rows[path].append([float(x) for x in done.stdout.split()])
        print(f"{args.threads} threads, load average {os.getloadavg()[0]:.1f}, medians of {args.rounds}")
        for path, values in rows.items():
            wall, busy, faults = (statistics.median(v) for v in zip(*values))
            print(f"{os.path.basename(path):24s} {os.path.getsize(path) / 1e6:7.1f} MB  load {wall:6.1f} ms  "
                  f"processor {busy:6.1f} ms  {faults:.0f} faults")


main()
