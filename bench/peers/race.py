"""Interleaved timing of engines, each in a process of its own: a worker reads one JSON line, works, answers with one.

Workers wait in a read while another one works, so that no thread of theirs spins beside it; a pause before each
measurement lets pools that spin after their work fall asleep. Used by minilm.py and llama_cpp.py."""
import datetime
import json
import os
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PAUSE = 0.03


class Worker:
    def __init__(self, name, command, environment=None, cwd=None):
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd,
                                        env={**os.environ, **(environment or {})})

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                answer = json.loads(line)
                if "error" in answer:
                    sys.exit(f"{self.name}: {answer['error']}")
                return answer
        sys.exit(f"{self.name}: ended with code {self.process.wait()}")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serve(handle):
    """The other side: one answer per line of stdin."""
    for line in sys.stdin:
        try:
            answer = handle(json.loads(line))
        except Exception as error:  # the driver prints it
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)


def race(workers, rounds, **request):
    """Seconds by worker: each round asks all of them, beginning with another one each time."""
    times = {w.name: [] for w in workers}
    for w in workers:
        w.ask(**request)  # warm
    for r in range(rounds):
        for i in range(len(workers)):
            w = workers[(r + i) % len(workers)]
            time.sleep(PAUSE)
            times[w.name].append(w.ask(**request)["seconds"])
    return times


def run_json(program, *arguments):
    """What `sluice VERB ... --json` prints; ends the script where it fails."""
    command = [program, *map(str, arguments), "--json"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {' '.join(command)} failed")
    return json.loads(result.stdout)


def summary(seconds):
    return {"mean": statistics.median(seconds), "std": statistics.pstdev(seconds), "n": len(seconds)}


def machine(threads):
    text = open("/proc/cpuinfo").read()
    field = lambda key: next((l.split(":", 1)[1].strip() for l in text.splitlines() if l.startswith(key)), "")
    flags = field("flags").split()
    isa = [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16") if f in flags]
    memory = int(open("/proc/meminfo").readline().split()[1]) // 1024
    return {"cpu": field("model name"), "isa": " ".join(isa), "threads": threads, "memory": f"{memory} MiB"}


def report(slug, command, data, arms, bars, limits, notes, threads, family="peers"):
    by = {a["name"]: a for a in arms}
    for bar in bars:
        value = by[bar["arm"]]["metrics"][bar["metric"]]["mean"]
        if bar.get("against"):
            other = by[bar["against"]["arm"]]["metrics"][bar["against"]["metric"]]["mean"]
            value = value / other if bar["op"] == "ratio" else value - other
        bar["value"] = value
        bar["met"] = value >= bar["bound"] if bar["relation"] == ">=" else value <= bar["bound"]
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {"slug": slug, "id": slug, "family": family, "scale": "small", "date": datetime.date.today().isoformat(),
            "commit": commit.stdout.strip(), "command": command, "machine": machine(threads), "data": data,
            "seeds": [1], "arms": arms, "bars": bars, "controls": [], "limits": limits, "figures": [], "notes": notes,
            "verdict": "met" if all(b["met"] for b in bars) else "missed"}


def write(path, document):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    part = path + ".part"
    with open(part, "w") as file:
        json.dump(document, file, indent=1)
        file.write("\n")
    os.replace(part, path)


def print_bars(document):
    m = document["machine"]
    print(f"{m['cpu']}, {m['isa']}, {m['threads']} threads")
    for b in document["bars"]:
        print(f"{'met   ' if b['met'] else 'MISSED'} {b['name']}: {b['value']:.3f} {b['relation']} {b['bound']}")
    print("verdict:", document["verdict"])
