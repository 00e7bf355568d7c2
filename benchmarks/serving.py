"""How many tokens a second a model gives to one stream, and to many at once.

    python benchmarks/serving.py                      # a tiny model with random weights
    python benchmarks/serving.py --model reasoner@v2  # any name of a model
    python benchmarks/serving.py --width 512 --layers 8 --tokens 64   # weights beyond the caches

Requests are submitted together, each with its own prompt and seed, and write on after an end token,
so every stream has the same length. `fastest_s` and `slowest_s` are the times of the first and the
last stream to end: where they are close, nobody starved. The first token is timed from the
submission, at the median of the streams. `cpu_tokens` are tokens for each second of processor time,
which other programs on the machine change little.
"""

import argparse
import json
import threading
import time

import jax
from flax import nnx

from tunix_rt.inference.async_engine import AsyncEngine
from tunix_rt.inference.sampling import SamplingParams
from tunix_rt.models.config import preset
from tunix_rt.models.gemma import Gemma
from tunix_rt.models.tokenizer import encode_prompts, train_tokenizer


def load(name: str, width: int = 128, layers: int = 4):
    "The model of that name, or a small one with random weights."
    if name:
        from tunix_rt.api import load_model

        model = load_model(name, trainable=False)
        return model.module, model.tokenizer
    words = train_tokenizer(["What is 47 plus 86? It is 133, and nothing else."] * 20, 128)
    shape = {"width": width, "hidden": 4 * width, "layers": layers, "query_heads": width // 32}
    return Gemma(preset("tiny").resized(vocabulary=len(words), **shape), nnx.Rngs(0)), words


def measure(engine: AsyncEngine, streams: int, sampling: SamplingParams) -> dict:
    "Submit so many requests at once, and time them."
    questions = [f"What is {number} plus {number * 7}?" for number in range(streams)]
    prompts = encode_prompts(engine.tokenizer, questions)
    started, firsts, lasts = time.perf_counter(), [0.0] * streams, [0.0] * streams
    worked = time.process_time()
    tokens = [0] * streams

    def read(number: int) -> None:
        stream = engine.submit(prompts[number], sampling, seed=number, ignore_eos=True)
        for delta in stream:
            firsts[number] = firsts[number] or time.perf_counter() - started
            tokens[number] += len(delta.tokens)
        lasts[number] = time.perf_counter() - started

    readers = [threading.Thread(target=read, args=(number,)) for number in range(streams)]
    for each in readers:
        each.start()
    for each in readers:
        each.join()
    return {
        "streams": streams,
        "tokens_per_second": round(sum(tokens) / max(lasts), 1),
        "cpu_tokens": round(sum(tokens) / (time.process_time() - worked), 1),
        "first_token_ms": round(1000 * sorted(firsts)[streams // 2], 1),
        "fastest_s": round(min(lasts), 3),
        "slowest_s": round(max(lasts), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="", help="name of a model; a random tiny one by default")
    parser.add_argument("--width", type=int, default=128, help="of the random model")
    parser.add_argument("--layers", type=int, default=4, help="of the random model")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    typed = parser.parse_args()
    sampling = SamplingParams(max_new_tokens=typed.tokens, temperature=typed.temperature)
    loaded = load(typed.model, typed.width, typed.layers)
    with AsyncEngine(*loaded, max_rows=max(typed.streams)) as engine:
        for streams in typed.streams:
            measure(engine, streams, sampling)  # compiles
        found = {}
        for _ in range(typed.repeats):  # in turns, so that a busy moment of the machine hits all
            for streams in typed.streams:
                run = measure(engine, streams, sampling)
                best = found.setdefault(streams, run)
                if run["tokens_per_second"] > best["tokens_per_second"]:
                    found[streams] = run
    alone = found[typed.streams[0]]["tokens_per_second"]
    for run in found.values():
        times = round(run["tokens_per_second"] / alone, 2)
        print(json.dumps({"device": jax.devices()[0].device_kind, **run, "times_one": times}))


if __name__ == "__main__":
    main()
