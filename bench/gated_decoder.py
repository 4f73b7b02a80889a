#!/usr/bin/env python3
"""Quality and cost of a decoder whose neurons, tokens or heads are gated, with gates that learnt a budget.

  scripts/data.sh text
  bench/gated_decoder.py --out docs/results

models/tiny.safetensors gets gates of each granularity; each copy learns each budget (`sluice tune --gate-budget`) on text
that the decoder was trained on, and all are measured on text that nothing has seen. Beside them: the decoder as it is and
tuned for as many updates; gates that never learn (random scores, as much open, the rest of the network tuned as long);
and input sparsity that is calibrated, not trained. A network this small says little about time, so a larger one with random
gates is timed, too, which gives no text worth reading. --work keeps the files of a run; those that are there are not made again."""
import argparse
import concurrent.futures
import functools
import json
import os
import random
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "peers"))
import race

DATA = os.environ.get("SLUICE_DATA") or os.path.join(
    os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share"), "sluice")
KINDS = ["neuron", "token", "head"]
GATES = "insert-gates:granularity={},hidden=16"
# Noise lets gates try the other side; without it whole layers of token gates close at once.
LEARNING, RANDOM = GATES + ",noise=1", GATES + ",estimator=none,bias={}"
# Of the larger network: scores around a bias below 0, so that less than half is open.
TIMED = {"neuron": ",bias=-0.15", "token": ",bias=-0.1", "head": ",bias=-0.1"}
CALIBRATION_BYTES, TRAINING_BYTES = 100_000, 4_000_000


def training_text(folder, held_out, path):
    """Documents of the training text, mixed, without those that are held out."""
    held, documents = open(held_out, encoding="utf-8").read(), []
    for name in sorted(os.listdir(folder)):
        if name.endswith(".jsonl"):
            documents += [json.loads(line)["text"] for line in open(os.path.join(folder, name), encoding="utf-8")]
    documents = [text for text in documents if text not in held]
    random.Random(1).shuffle(documents)
    with open(path, "w", encoding="utf-8") as file:
        size = 0
        for text in documents:
            file.write(text + "\n")
            size += len(text)
            if size > TRAINING_BYTES:
                break


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="folder of the report")
    parser.add_argument("--model", default=f"{race.ROOT}/models/tiny.safetensors", help="bundle of a decoder")
    parser.add_argument("--time-model", default=f"{race.ROOT}/models/small.safetensors", help="bundle of a larger decoder")
    parser.add_argument("--text", default=f"{DATA}/text", help="folder of the text it was trained on")
    parser.add_argument("--config", default=f"{race.ROOT}/configs/decoder-tiny.toml", help="of its training")
    parser.add_argument("--budgets", default="0.7,0.5,0.3")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--max-tokens", type=int, default=20000, help="of the test text")
    parser.add_argument("--threads", type=int, default=1, help="of the times")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="networks trained at a time, a thread each")
    parser.add_argument("--sluice", default=f"{race.ROOT}/build/release/sluice")
    parser.add_argument("--work", help="folder for what is made on the way; a temporary one by default")
    parser.add_argument("--prepare", action="store_true", help="make the networks in --work and stop: measure later")
    options = parser.parse_args()
    sluice = options.sluice
    if not os.path.exists(sluice):
        sys.exit("gated_decoder.py: no sluice that trains; build it with scripts/build.sh release")
    if not os.path.isdir(options.text):
        sys.exit(f"gated_decoder.py: no {options.text}; scripts/data.sh text makes it")
    budgets = [float(each) for each in options.budgets.split(",")]
    temporary = None if options.work else tempfile.TemporaryDirectory()
    work = options.work or temporary.name
    os.makedirs(work, exist_ok=True)
    at = functools.partial(os.path.join, work)
    run = functools.partial(race.run_json, sluice)
    reports = {}

    def make(name, *arguments):
        """Runs a command that writes `name`, once; what it printed stays beside it."""
        path, note = at(name + ".safetensors"), at(name + ".json")
        if not os.path.exists(note):
            found = run(*arguments, "-o", path)
            race.write(note, found)
        reports[name] = json.load(open(note))
        return path

    # ---- texts ----
    held_out, training = at("held-out.txt"), at("training.txt")
    if not os.path.exists(training):
        subprocess.run([sluice, "train", options.config, "-o", at("pack.safetensors"), "--pack-only", "--held-out-text",
                        held_out], check=True)
        training_text(options.text, held_out, training + ".part")
        os.replace(training + ".part", training)
    whole = open(held_out, "rb").read()
    cut = whole.index(b"\n", CALIBRATION_BYTES) + 1
    calibration, test = at("calibration.txt"), at("test.txt")
    open(calibration, "wb").write(whole[:cut])
    open(test, "wb").write(whole[cut:])

    # ---- networks ----
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    tuning = ["--text", training, "--limit", 2000, "--steps", options.steps, "--tokens", 128, "--batch", 8, "--rate", "3e-4"]
    dense = make("dense", "transform", options.model, "--pass", "dequantize")
    make("inputs", "transform", dense, "--pass", "sparsify-activations:keep=[0.3,0.4,0.5,0.6,0.7,0.8,0.9,1]", "--calibrate",
         calibration)

    def decode_cost(path):
        return run("eval", path, "--text", calibration, "--max-tokens", 512, "--threads", 1)["models"][0]["decode_macs_per_token"]

    def never_trained(kind, like):
        """Random scores with the bias that costs what the trained gates do, and the rest tuned as long."""
        name, wanted = f"{kind}-random", decode_cost(like)
        trial = at(name + "-fresh.safetensors")
        low, high = -2.0, 2.0
        for _ in range(10 if not os.path.exists(at(name + ".json")) else 0):
            bias = (low + high) / 2
            run("transform", dense, "-o", trial, "--pass", RANDOM.format(kind, bias))
            low, high = (low, bias) if decode_cost(trial) > wanted else (bias, high)
        return make(name, "tune", trial, "--teacher", dense, *tuning)

    def trained(kind, budget):
        fresh = make(f"{kind}-{budget:g}-fresh", "transform", dense, "--pass", LEARNING.format(kind))
        return make(f"{kind}-{budget:g}", "tune", fresh, "--teacher", dense, *tuning, "--gate-budget", budget)

    middle = sorted(budgets)[len(budgets) // 2]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        waiting = {(kind, budget): pool.submit(trained, kind, budget)
                   for budget in sorted(budgets, key=lambda b: b != middle) for kind in KINDS}
        tuned = pool.submit(make, "dense-tuned", "tune", dense, "--teacher", dense, *tuning)
        controls = {kind: pool.submit(lambda kind=kind: never_trained(kind, waiting[kind, middle].result())) for kind in KINDS}
    arms = {"dense": dense, "dense, tuned": tuned.result()}
    for kind in KINDS:
        arms |= {f"{kind} {budget:g}": waiting[kind, budget].result() for budget in budgets}
        arms[f"{kind} {middle:g}, never trained"] = controls[kind].result()
    timed = {"dense": make("large", "transform", options.time_model, "--pass", "dequantize")}
    for kind, bias in TIMED.items():
        timed[f"{kind}, random"] = make(f"large-{kind}", "transform", timed["dense"], "--pass",
                                        f"insert-gates:granularity={kind},hidden=32,estimator=none{bias}")
    if options.prepare:
        return

    # ---- measurement ----
    rounds = [run("eval", *arms.values(), "--text", test, "--max-tokens", options.max_tokens, "--threads", options.threads)
              for _ in range(3)]
    curve = run("eval", at("inputs.safetensors"), "--text", test, "--max-tokens", options.max_tokens, "--threads",
                options.threads, "--budget-curve")["models"]
    large = [run("eval", *timed.values(), "--text", test, "--max-tokens", 1000, "--threads", options.threads)["models"]
             for _ in range(3)]
    full = rounds[0]["models"][0]
    one = lambda value: {"mean": value, "std": 0, "n": 1}
    measured = []
    for i, (name, path) in enumerate(arms.items()):
        found = [each["models"][i] for each in rounds]
        metrics = {"perplexity": one(found[0]["perplexity"]), "bits_per_byte": one(found[0]["bits_per_byte"]),
                   "cost": one(found[0]["decode_macs_per_token"] / full["decode_macs_per_token"]),
                   "cost_of_text": one(found[0]["macs_per_token"] / full["macs_per_token"]),
                   "macs_per_token": one(found[0]["decode_macs_per_token"]),
                   "decode_ms": race.summary([1e3 * each["decode_seconds_per_token"] for each in found]),
                   "text_tokens_per_second": race.summary([each["tokens_per_second"] for each in found])}
        stem = os.path.basename(path).removesuffix(".safetensors")
        gates = reports.get(stem, {}).get("gates")
        if gates:
            metrics["open"] = one(gates["open"]["after"])
            metrics["off_budget"] = one(abs(gates["open"]["after"] - gates["budget"]))
        role = "system" if gates else "control" if "never" in name else "baseline"
        measured.append({"name": name, "role": role, "metrics": metrics})
    for row in curve:
        measured.append({"name": f"inputs {row['size']}", "role": "baseline", "metrics": {
            "perplexity": one(row["perplexity"]), "bits_per_byte": one(row["bits_per_byte"]),
            "cost": one(row["decode_macs_per_token"] / full["decode_macs_per_token"]),
            "cost_of_text": one(row["macs_per_token"] / full["macs_per_token"]),
            "macs_per_token": one(row["decode_macs_per_token"])}})
    size = f"{large[0][0]['parameters'] / 1e6:.1f} M"
    for i, name in enumerate(timed):
        found = [each[i] for each in large]
        measured.append({"name": f"{size}: {name}", "role": "baseline", "metrics": {
            "cost": one(found[0]["decode_macs_per_token"] / large[0][0]["decode_macs_per_token"]),
            "cost_of_text": one(found[0]["macs_per_token"] / large[0][0]["macs_per_token"]),
            "macs_per_token": one(found[0]["decode_macs_per_token"]),
            "decode_ms": race.summary([1e3 * each["decode_seconds_per_token"] for each in found]),
            "text_tokens_per_second": race.summary([each["tokens_per_second"] for each in found])}})
    systems = [arm for arm in measured if arm["role"] == "system"]
    ratio = lambda name, claim, arm, metric, relation, against, bound: {
        "name": name, "claim": claim, "arm": arm, "metric": metric, "relation": relation,
        "against": {"arm": against, "metric": metric}, "op": "ratio", "bound": bound}
    farthest = max(systems, key=lambda arm: arm["metrics"]["off_budget"]["mean"])
    bars = [{"name": "farthest from its budget", "claim": "gates open what they may", "arm": farthest["name"],
             "metric": "off_budget", "relation": "<=", "against": None, "op": "value", "bound": 0.05}]
    for kind in KINDS:
        arm = f"{kind} {middle:g}"
        bars.append(ratio(f"perplexity of {arm} over that of gates never trained",
                          "what gates learn is worth something at equal cost", arm, "perplexity", "<=",
                          f"{arm}, never trained", 0.95))
    for kind in KINDS:
        arm = f"{kind} {max(budgets):g}"
        bars.append(ratio(f"perplexity of {arm} over that of dense", "a mild budget costs little quality", arm, "perplexity",
                          "<=", "dense", 1.05))
    for kind in KINDS:
        arm = f"{kind} {min(budgets):g}"
        bars.append(ratio(f"time of a token of {arm} over that of dense", "what is skipped is time", arm, "decode_ms", "<=",
                          "dense", 1.0))
    parameters = full["parameters"]
    document = race.report(
        "gated-decoder", "bench/gated_decoder.py" + (f" --out {options.out}" if options.out else ""),
        [f"{os.path.basename(options.model)}, {parameters / 1e6:.1f} M parameters, f32; {options.steps} updates of 8 samples of "
         f"128 tokens on text of its training; the first {options.max_tokens} tokens of held-out text behind "
         f"{CALIBRATION_BYTES // 1000} kB to calibrate on"],
        measured, bars, {},
        ["cost: multiply-accumulates of a token decoded, over those of dense, metered on the first 2,048 tokens of the test text; "
         "cost_of_text: of a text that runs whole",
         "never trained: random scores (estimator=none) with a bias that costs what the trained gates do before the rest is tuned, "
         "as long as with them",
         f"{size}: {os.path.basename(options.time_model)} in f32 with random gates, for time alone",
         "inputs: sparsify-activations, thresholds from the calibration text, not tuned"],
        options.threads, family="dynamic")
    race.print_bars(document)
    for arm in measured:
        m = arm["metrics"]
        print(f"{arm['name']:28} " + "  ".join(f"{key} {m[key]['mean']:.3f}" for key in
              ("open", "cost", "cost_of_text", "perplexity", "decode_ms", "text_tokens_per_second") if key in m))
    if options.out:
        race.write(os.path.join(options.out, "gated-decoder.json"), document)


main()
