"""Compare supervised fine-tuning: tokens a second, useful arithmetic, first step, peak memory.

    .venv/bin/python benchmarks/sft.py
    .venv/bin/python benchmarks/sft.py --sizes S --contenders ours,tunix --rounds 1 --steps 5

Everyone trains all weights of the same Gemma-2 shape in float32 with AdamW on two threads, on
random sequences of 40 tokens up to the row length. Tokens are non-pad tokens. Useful GFLOP/s
count 6 operations for each weight that multiplies (the token lookup is not one) and each token,
plus 12 for each attention feature and each (query, key) pair that a causal mask leaves visible
inside a sequence: pads and masked pairs earn nothing. The share is of this machine's own float32
matrix product, measured in the same rounds.
"""

from __future__ import annotations

from harness import Contender, choose, middle, read_options, run_rounds, save
from workload import SIZES, Size, useful_flops

TRL = "peers/trl_sft.py"
EAGER = "float32, eager attention (soft caps), no gradient checkpointing, no clipping"
CONTENDERS = [
    Contender(
        "tunix",
        "tunix",
        "peers/tunix_sft.py",
        note="google-tunix PeftTrainer, rows padded to full length (it refuses packing), no remat",
    ),
    Contender("trl-plain", "trl", TRL, ("--mode", "plain"), f"padded to the longest; {EAGER}"),
    Contender(
        "trl-grouped",
        "trl",
        TRL,
        ("--mode", "grouped"),
        "batches of similar length, as group_by_length makes them; otherwise as trl-plain",
    ),
    Contender(
        "trl-packed",
        "trl",
        TRL,
        ("--mode", "packed"),
        "packing=True: every row of a batch flattened into one; otherwise as trl-plain",
    ),
    Contender(
        "trl-packed-rows",
        "trl",
        TRL,
        ("--mode", "packed-rows"),
        "packing=True, one row at a time, a batch by accumulation; otherwise as trl-plain",
    ),
    Contender("ours", "ours", "ours_sft.py", note="tunix_rt.training, packed rows"),
]
MATMUL = Contender("matmul", "ours", "matmul_rate.py")
TARGETS = {"S": {"tunix": 2.6, "best TRL": 1.2}, "M": {"tunix": 2.3, "best TRL": 1.2}}
MEMORY_TARGETS = {"M": 0.5}  # Of google-tunix's peak


def tabulate(
    size: Size,  # For the arithmetic
    results: dict[str, list[dict]],  # Measurements by contender
    matmul: float,  # GFLOP/s
) -> list[dict]:
    "Turn measurements into one row a contender."
    rows = []
    for name, rounds in results.items():
        for one in (one for one in rounds if "error" not in one):
            work = useful_flops(size, one["tokens"], one["pairs"])
            one["tokens_per_second"] = one["tokens"] / one["seconds"]
            one["tokens_per_core_second"] = one["tokens"] / one["core_seconds"]
            one["useful_gflops"] = work / one["seconds"] / 1e9
            one["tokens_per_step"] = one["tokens"] / one["steps"]
        useful = middle(rounds, "useful_gflops")
        rates = sorted(one["tokens_per_second"] for one in rounds if "error" not in one)
        rows.append(
            {
                "contender": name,
                "tokens/s": middle(rounds, "tokens_per_second"),
                "slowest-fastest": f"{rates[0]:,.0f}-{rates[-1]:,.0f}" if rates else "failed",
                "useful GFLOP/s": useful,
                "of matmul": f"{useful / matmul:.0%}" if useful else None,
                "first step s": middle(rounds, "first_step"),
                "peak RSS MB": middle(rounds, "rss_mb"),
                "tokens a step": middle(rounds, "tokens_per_step"),
                "tokens/core-s": middle(rounds, "tokens_per_core_second"),
                "cores taken by others": middle(rounds, "others"),
            }
        )
    return rows


def compare(
    size: Size,  # Selects the targets
    rows: list[dict],  # From `tabulate`
) -> list[dict]:
    "Set our figures against the targets."
    rates = {row["contender"]: row["tokens/s"] for row in rows if row["tokens/s"]}
    memory = {row["contender"]: row["peak RSS MB"] for row in rows if row["peak RSS MB"]}
    trl = {name: rate for name, rate in rates.items() if name.startswith("trl")}
    if trl:
        rates["best TRL"] = max(trl.values())

    def line(what: str, figure: float, target: float, met: bool) -> dict:
        return {
            "figure": what,
            "measured": f"{figure:.2f}",
            "target": target,
            "met": "yes" if met else "no",
        }

    lines = []
    for other, target in TARGETS.get(size.name, {}).items():
        if "ours" in rates and other in rates:
            ratio = rates["ours"] / rates[other]
            lines.append(line(f"tokens/s, ours / {other}", ratio, target, ratio >= target))
    if size.name in MEMORY_TARGETS and {"ours", "tunix"} <= memory.keys():
        target = MEMORY_TARGETS[size.name]
        ratio = memory["ours"] / memory["tunix"]
        lines.append(line("peak RSS, ours / tunix", ratio, target, ratio <= target))
    return lines


def main() -> None:
    "Measure, tabulate and save."
    options = read_options(__doc__, "sft", steps=0)
    contenders = choose(CONTENDERS, options.contenders)

    sections, raw = {}, {}
    for name in options.sizes.split(","):
        size = SIZES[name]
        arguments = ["--size", name, "--steps", str(options.steps or size.steps)]
        results = run_rounds([MATMUL, *contenders], arguments, options.rounds, options.tries)
        matmuls = results.pop(MATMUL.name)
        matmul = middle(matmuls, "gflops") or float("nan")
        rows = tabulate(size, results, matmul)
        sections[f"Size {name}: best float32 matmul {matmul:.0f} GFLOP/s"] = rows
        sections[f"Size {name}: targets"] = compare(size, rows)
        raw[name] = {**results, "matmul": matmuls}
    title = f"# Supervised fine-tuning, median of {options.rounds} interleaved rounds"
    explanation = (__doc__ or "").rsplit("\n\n", 1)[-1].strip()
    save(options.name, f"{title}\n\n{explanation}", sections, contenders, raw, vars(options))


if __name__ == "__main__":
    main()
