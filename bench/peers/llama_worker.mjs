// llama.cpp through node-llama-cpp, as a worker of race.py: node llama_worker.mjs MODEL.gguf THREADS CONTEXT
import readline from "node:readline";
import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const [, , file, threadsText, contextText] = process.argv;
const threads = Number(threadsText);
const home = process.cwd(); // the folder of setup.sh, where the package is
const entry = path.join(home, "node_modules/node-llama-cpp/dist/index.js");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry).href);

const llama = await getLlama({gpu: false, build: "never", maxThreads: threads, logLevel: LlamaLogLevel.error});
const begun = performance.now();
const model = await llama.loadModel({modelPath: file, gpuLayers: 0});
const context = await model.createContext({contextSize: Number(contextText), batchSize: 512, threads, sequences: 1});
const load = (performance.now() - begun) / 1000;
const sequence = context.getSequence();

const status = () => {
  const text = fs.readFileSync("/proc/self/status", "utf8");
  return Number(/VmHWM:\s+(\d+)/.exec(text)[1]) * 1024;
};

async function handle(request) {
  if (request.load) return {seconds: load, peak: status(), info: llama.systemInfo};
  await sequence.clearHistory();
  const ids = request.ids;
  if (request.score) {
    // The sum of -log p of every token after the first, each from all before it.
    const input = ids.map((id, i) => (i + 1 === ids.length ? id : [id, {generateNext: {probabilities: true}}]));
    const results = await sequence.controlledEvaluate(input);
    let loss = 0;
    for (let i = 0; i + 1 < ids.length; i++) loss -= Math.log(results[i].next.probabilities.get(ids[i + 1]));
    return {loss};
  }
  if (request.logprobs) {
    const input = ids.map((id, i) => (i + 1 === ids.length ? [id, {generateNext: {probabilities: true}}] : id));
    const results = await sequence.controlledEvaluate(input);
    const map = results[ids.length - 1].next.probabilities;
    const values = new Array(request.vocabulary).fill(null);
    for (const [token, p] of map) values[token] = p;
    return {probabilities: values};
  }
  if (request.generate) {
    // The first token comes with the prompt; what is timed are single tokens.
    let count = 0, start = 0;
    for await (const token of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
      if (count === 0) start = performance.now();
      if (count++ === request.generate) break;
    }
    return {seconds: (performance.now() - start) / 1000, peak: status()};
  }
  const start = performance.now();
  await sequence.evaluateWithoutGeneratingNewTokens(ids);
  return {seconds: (performance.now() - start) / 1000, peak: status()};
}

for await (const line of readline.createInterface({input: process.stdin})) {
  let answer;
  try {
    answer = await handle(JSON.parse(line));
  } catch (error) {
    answer = {error: String(error?.stack ?? error)};
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
process.exit(0);
