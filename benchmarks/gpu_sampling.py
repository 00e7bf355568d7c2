"""Compare sampling from Gemma-2-2B on one accelerator, at batches of 1 to 64.

    python benchmarks/gpu_sampling.py
    python benchmarks/gpu_sampling.py --rows 1,16 --contenders ours,transformers-static
    python benchmarks/gpu_sampling.py --toy        # a toy size, on whatever there is

It needs a JAX that sees the card (`pip install -U "jax[cuda13]"`) and makes an environment for
torch and transformers; TUNIX_RT_BENCH_TORCH names an interpreter that has them already.

So far this has been run with `--toy` on a processor only, which shows that every part works and
says nothing about speed: no figures of a card are kept in benchmarks/results until one has been
measured.

Everyone continues the same prompts of 64 tokens by 128, greedily, with the same Gemma-2-2B shape,
random weights, in bfloat16, and never stops early. New tokens a second are those of the whole call,
prompt and all. A step is what one more token of every row costs: the difference to answers half as
long, over the tokens between. The share of the bandwidth limit is the bytes that a step cannot
avoid reading (every parameter once, and the keys and values of the tokens so far) over the step
and over the bandwidth that the same card showed in the same rounds.
"""

from __future__ import annotations

import argparse
from statistics import median

from harness import Contender, choose, markdown_table, middle, run_rounds, save
from workload import NEW_TOKENS, PROMPT_LENGTH, SIZES, Size

OURS, PEER = "ours_gpu_sampling.py", "peers/transformers_gpu_sampling.py"
CONTENDERS = [
    Contender("ours", "ours", OURS, note="tunix_rt.inference.engine.generate", accelerator=True),
    Contender(
        "transformers",
        "torch",
        PEER,
        ("--cache", "dynamic"),
        "generate, eager attention (soft caps), the default growing cache",
        accelerator=True,
    ),
    Contender(
        "transformers-static",
        "torch",
        PEER,
        ("--cache", "static"),
        "generate, eager attention (soft caps), a cache allocated once",
        accelerator=True,
    ),
]
SHARE = 0.6  # Target: of the bandwidth limit, at batch 1


def step_bytes(
    size: Size,  # The model
    rows: int,  # B
) -> float:  # In bfloat16, averaged over the steps that are timed
    "Count what one step cannot avoid reading."
    tokens = PROMPT_LENGTH + NEW_TOKENS * 3 / 4
    cache = 2 * size.layers * size.kv_heads * size.head_width * tokens * rows
    return 2 * (size.matmul_parameters + cache)


def tabulate(
    size: Size,  # The model
    rows: int,  # B
    results: dict[str, list[dict]],  # Measurements by contender
    bandwidth: float,  # Bytes a second
) -> list[dict]:
    "Turn measurements into one row a contender."
    table = []
    for name, rounds in results.items():
        for one in (one for one in rounds if "error" not in one):
            whole, half = median(one["seconds"]), median(one["half"])
            one["rate"] = rows * NEW_TOKENS / whole
            one["step_ms"] = 1e3 * (whole - half) / (NEW_TOKENS // 2)
            one["share"] = step_bytes(size, rows) / bandwidth / one["step_ms"] * 1e3
        share, error = middle(rounds, "share"), rounds[-1].get("error")
        table.append(
            {
                "contender": name,
                "new tokens/s": middle(rounds, "rate"),
                "step ms": middle(rounds, "step_ms"),
                "of the bandwidth limit": share and f"{share:.0%}",
                "first call s": middle(rounds, "first_call"),
                "failed": error.splitlines()[-1][:80] if error else None,
            }
        )
    return table


def compare(
    tables: dict[int, list[dict]],  # By batch
) -> list[dict]:
    "Set our rate against the better of transformers, and batch 1 against its limit."
    lines = []
    for rows, table in tables.items():
        found = {row["contender"]: row for row in table if row["new tokens/s"]}
        ours = found.pop("ours", None)
        if ours and rows == 1:
            share = float(ours["of the bandwidth limit"].strip("%")) / 100
            met = "yes" if share >= SHARE else "no"
            figure = "batch 1: share of the bandwidth limit, ours"
            measured = f"{share:.2f}"
            lines.append({"figure": figure, "measured": measured, "target": SHARE, "met": met})
        if ours and found:
            best = max(row["new tokens/s"] for row in found.values())
            figure = f"batch {rows}: tokens/s, ours / best of transformers"
            measured = f"{ours['new tokens/s'] / best:.2f}"
            lines.append({"figure": figure, "measured": measured, "target": None, "met": None})
    return lines


def main() -> None:
    "Measure, tabulate and save."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--toy", action="store_true", help="a toy size, nothing saved")
    parser.add_argument(
        "--rows", default="", help="batches, comma-separated (by default 1,4,16,64)"
    )
    parser.add_argument("--contenders", default="all", help="comma-separated names")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each contender")
    parser.add_argument("--name", default="gpu_sampling", help="first part of the files' names")
    options = parser.parse_args()
    size = SIZES["toy" if options.toy else "gemma-2-2b"]
    batches = [
        int(word) for word in (options.rows or ("1,4" if options.toy else "1,4,16,64")).split(",")
    ]
    chosen = choose(CONTENDERS, options.contenders)
    mib = ("--mib", "16" if options.toy else "1024")
    yardstick = Contender("bandwidth", "ours", "bandwidth_rate.py", mib, accelerator=True)

    asked = ["--size", size.name]
    rates = run_rounds([yardstick], asked, options.rounds)["bandwidth"]
    speed = middle(rates, "bytes_per_second") or float("nan")
    tables, raw = {}, {"bandwidth": rates}
    for rows in batches:
        found = run_rounds(chosen, [*asked, "--rows", str(rows)], options.rounds)
        raw[f"batch {rows}"] = found
        tables[rows] = tabulate(size, rows, found, speed)
    sections = {f"Batch {rows}": table for rows, table in tables.items()}
    lines = compare(tables)
    if options.toy:
        print("\n" + "\n\n".join(map(markdown_table, [*sections.values(), lines])))
        print("\na toy size: every part ran, and the figures say nothing about a card")
        return
    sections["Targets"] = lines
    sections["Yardstick"] = [{"figure": "bandwidth, GB/s", "measured": speed / 1e9}]
    title = f"# Sampling Gemma-2-2B on one card, median of {options.rounds} interleaved rounds"
    explanation = (__doc__ or "").rsplit("\n\n", 1)[-1].strip()
    device = next((one["device"] for one in rates if "device" in one), "")
    text = f"{title}\n\n{explanation}"
    save(options.name, text, sections, chosen, raw, vars(options), device=device)


if __name__ == "__main__":
    main()
