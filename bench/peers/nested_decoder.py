#!/usr/bin/env python3
"""A decoder of many sizes that proposes tokens to itself, beside itself without proposals and beside llama.cpp on the same
weights as one dense network.

  bench/peers/setup.sh llama-cpp
  bench/peers/nested_decoder.py --model small-nested.safetensors --out docs/results

The model is of `sluice train` with [nest] (configs/decoder-small-nested.toml). Tokens are greedy, behind prompts of
English, C and Python, in turns; rates are of decoding alone, without prompt and loading. Proposals must not change the
text. Nested layers are f32; llama.cpp reads its largest size as GGUF in f16."""
import argparse
import functools
import os
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import race

CACHE = os.environ.get("SLUICE_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "sluice")
PROMPTS = ["The function returns", "static int ", "And the king said unto them,", "def __init__(self", "The kernel",
           "It was a pleasant morning, and"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="folder of the report")
    parser.add_argument("--model", required=True, help="bundle of a nested decoder in f32")
    parser.add_argument("--draft-size", help="size that proposes; the cheapest by default")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--generate", type=int, default=96)
    options = parser.parse_args()
    peer = os.path.join(CACHE, "peers/llama-cpp")
    if not os.path.exists(os.path.join(peer, ".complete")):
        sys.exit("nested_decoder.py: no llama.cpp; get it with bench/peers/setup.sh llama-cpp")
    sluice = f"{race.ROOT}/build/release/sluice"
    if not os.path.exists(sluice):
        sys.exit("nested_decoder.py: no sluice that knows passes; build it with scripts/build.sh release")

    run = functools.partial(race.run_json, sluice)

    about = run("inspect", options.model, "--sizes")
    sizes = [size["name"] for size in about["sizes"]]
    if len(sizes) < 2:
        sys.exit(f"nested_decoder.py: {options.model} has one size; [nest] in the configuration of `sluice train` makes more")
    draft = options.draft_size or sizes[0]
    stem = os.path.basename(options.model).removesuffix(".safetensors")
    with tempfile.TemporaryDirectory() as folder:
        whole, gguf = os.path.join(folder, "whole.safetensors"), os.path.join(folder, "whole.gguf")
        run("transform", options.model, "-o", whole, "--pass", "pick-size:size=" + sizes[-1])
        run("export", whole, "-o", gguf, "--format", "gguf", "--dtype", "f16")
        parameters = run("inspect", whole)["total"]["params"]
        ways = {"alone": [options.model], "self-speculative": [options.model, "--draft-size", draft], "dense": [whole]}
        rates = {name: [] for name in [*ways, "llama.cpp"]}
        proposed = accepted = 0
        texts, differ = {}, 0
        llama = race.Worker("llama.cpp", ["node", os.path.join(HERE, "llama_worker.mjs"), gguf, str(options.threads), "512"],
                            cwd=peer)
        llama.ask(load=True)
        for turn in range(options.rounds):
            for prompt in PROMPTS:
                for name, how in ways.items():
                    found = run("run", *how, "--prompt", prompt, "--max-tokens", options.generate, "--threads",
                                options.threads)
                    rates[name].append(found["decoded_tokens_per_second"])
                    ids = found["results"][0]["tokens"]
                    differ += ids != texts.setdefault(prompt, ids)
                    if name == "self-speculative":
                        proposed, accepted = proposed + found["proposed_tokens"], accepted + found["accepted_tokens"]
                # Which text llama.cpp goes on with makes no difference for its time: this one.
                answer = llama.ask(ids=texts[prompt][:8], generate=options.generate)
                rates["llama.cpp"].append(options.generate / answer["seconds"])
            print(f"round {turn + 1}: " + "  ".join(f"{n} {sorted(r)[len(r) // 2]:.1f} t/s" for n, r in rates.items()), flush=True)
        llama.close()
    arms = []
    for name, found in rates.items():
        metrics = {"tokens_per_second": race.summary(found)}
        if name == "self-speculative":
            metrics["accepted"] = {"mean": accepted / max(proposed, 1), "std": 0, "n": 1}
            metrics["proposed_per_token"] = {
                "mean": proposed / (options.rounds * len(PROMPTS) * options.generate), "std": 0, "n": 1}
            metrics["texts_that_differ"] = {"mean": float(differ), "std": 0, "n": 1}
        arms.append({"name": name, "role": "system" if name == "self-speculative" else "baseline", "metrics": metrics})
    faster = lambda name, claim, bound: {
        "name": f"self-speculative rate over that of {name}", "claim": claim, "arm": "self-speculative",
        "metric": "tokens_per_second", "relation": ">=", "against": {"arm": name, "metric": "tokens_per_second"},
        "op": "ratio", "bound": bound}
    bars = [{"name": "texts that differ", "claim": "proposals change no token", "arm": "self-speculative",
             "metric": "texts_that_differ", "relation": "<=", "against": None, "op": "value", "bound": 0},
            faster("alone", "proposing pays", 1.0), faster("llama.cpp", "and beats llama.cpp on the dense network", 1.0)]
    others = options.threads != os.cpu_count()
    slug = "peer-nested-decoder" + (f"-threads-{options.threads}" if others else "")
    document = race.report(
        slug, f"bench/peers/nested_decoder.py --model {os.path.basename(options.model)}"
        + (f" --draft-size {options.draft_size}" if options.draft_size else "")
        + (f" --threads {options.threads}" if others else "") + (f" --out {options.out}" if options.out else ""),
        [f"{stem}, {parameters / 1e6:.1f} M parameters, sizes {', '.join(sizes)}; {draft} proposes; {len(PROMPTS)} prompts, "
         f"{options.generate} tokens each"], arms, bars, {},
        ["llama.cpp of node-llama-cpp 3.22.1, CPU, prebuilt, f16 weights; Sluice's are f32: nested layers have no other"],
        options.threads)
    race.print_bars(document)
    if options.out:
        race.write(os.path.join(options.out, slug + ".json"), document)


main()
