"""Compare sampling: new tokens a second, greedy, 16 prompts of 64 tokens, 128 new tokens each.

    .venv/bin/python benchmarks/sampling.py
    .venv/bin/python benchmarks/sampling.py --sizes S --contenders ours,tunix-192 --rounds 1

Everyone runs the same Gemma-2 shape in float32 with random weights on two threads, and never
stops early. A process samples once to compile, then three times; its figure is the median of the
three, prefill included. The first call holds the compiling.
"""

from __future__ import annotations

from statistics import median

from harness import Contender, choose, middle, read_options, run_rounds, save
from workload import NEW_TOKENS, PROMPTS

TUNIX, TRANSFORMERS = "peers/tunix_sampling.py", "peers/transformers_sampling.py"
CONTENDERS = [
    Contender(
        "tunix-192",
        "tunix",
        TUNIX,
        ("--cache", "192"),
        "google-tunix Sampler, with the smallest cache that holds prompt and answer",
    ),
    Contender(
        "tunix-1024",
        "tunix",
        TUNIX,
        ("--cache", "1024"),
        "google-tunix Sampler, with a cache for 1,024 tokens, as a notebook would allocate",
    ),
    Contender(
        "transformers",
        "trl",
        TRANSFORMERS,
        ("--cache", "dynamic"),
        "generate, eager attention (soft caps), the default growing cache",
    ),
    Contender(
        "transformers-static",
        "trl",
        TRANSFORMERS,
        ("--cache", "static"),
        "generate, eager attention (soft caps), a cache allocated once",
    ),
    Contender("ours", "ours", "ours_sampling.py", note="tunix_rt.inference.engine.generate"),
]
TARGET = 1.5  # Times the best of the others, at every size


def tabulate(
    results: dict[str, list[dict]],  # Measurements by contender
) -> list[dict]:
    "Turn measurements into one row a contender."
    rows = []
    for name, rounds in results.items():
        for one in (one for one in rounds if "error" not in one):
            one["tokens_per_second"] = PROMPTS * NEW_TOKENS / median(one["seconds"])
            one["tokens_per_core_second"] = PROMPTS * NEW_TOKENS / one["core_seconds"]
        rates = sorted(one["tokens_per_second"] for one in rounds if "error" not in one)
        rows.append(
            {
                "contender": name,
                "new tokens/s": middle(rounds, "tokens_per_second"),
                "slowest-fastest": f"{rates[0]:,.0f}-{rates[-1]:,.0f}" if rates else "failed",
                "first call s": middle(rounds, "first_call"),
                "peak RSS MB": middle(rounds, "rss_mb"),
                "tokens/core-s": middle(rounds, "tokens_per_core_second"),
                "cores taken by others": middle(rounds, "others"),
            }
        )
    return rows


def compare(
    rows: list[dict],  # From `tabulate`
) -> list[dict]:
    "Set our rate against each of the others, and the best of them against the target."
    rates = {row["contender"]: row["new tokens/s"] for row in rows if row["new tokens/s"]}
    ours = rates.pop("ours", None)
    if ours is None or not rates:
        return []
    lines = [
        {"figure": f"ours / {name}", "measured": f"{ours / rate:.2f}", "target": None, "met": None}
        for name, rate in rates.items()
    ]
    best = ours / max(rates.values())
    met = "yes" if best >= TARGET else "no"
    figure = "ours / best of the others"
    return [*lines, {"figure": figure, "measured": f"{best:.2f}", "target": TARGET, "met": met}]


def main() -> None:
    "Measure, tabulate and save."
    options = read_options(__doc__, "sampling")
    contenders = choose(CONTENDERS, options.contenders)

    sections, raw = {}, {}
    for name in options.sizes.split(","):
        raw[name] = run_rounds(contenders, ["--size", name], options.rounds, options.tries)
        rows = tabulate(raw[name])
        sections[f"Size {name}"] = rows
        sections[f"Size {name}: targets"] = compare(rows)
    title = f"# Sampling, median of {options.rounds} interleaved rounds"
    explanation = (__doc__ or "").rsplit("\n\n", 1)[-1].strip()
    save(options.name, f"{title}\n\n{explanation}", sections, contenders, raw, vars(options))


if __name__ == "__main__":
    main()
