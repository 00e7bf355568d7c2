"""Compare a step of learning from rewards: sampling, update, first step, peak memory.

    .venv/bin/python benchmarks/grpo.py
    .venv/bin/python benchmarks/grpo.py --sizes S --contenders ours,trl --rounds 1 --steps 3

One GRPO step: 16 prompts of 64 random tokens, 8 answers to each, 96 tokens an answer, sampled at
temperature 1 from the same Gemma-2 shape with random weights, rewarded with the share of even token
ids, and one AdamW update of all weights in float32 on two threads. No end token can be drawn, so
every answer of every contender has its full length. A step counts everything between two steps of a
contender's own loop; sampling includes rewards and advantages, the update the rest. The first step
is that of a fresh process without a compilation cache; model and trainer exist before it starts.
Core-seconds are processor time (user and system) of the whole process: on a busy machine they are
the better witness, though torch's threads also burn them while they wait.
"""

from __future__ import annotations

import os

from harness import Contender, choose, middle, read_options, run_rounds, save

TRL = "peers/trl_grpo.py"
EAGER = "GRPOTrainer, generate of transformers, eager attention (soft caps), no checkpointing"
CONTENDERS = [
    Contender(
        "tunix",
        "tunix",
        "peers/tunix_grpo.py",
        note="google-tunix GRPOLearner, its own sampler, no KL penalty, all answers at once",
    ),
    Contender("trl", "trl", TRL, (), f"all answers at once; {EAGER}"),
    Contender(
        "trl-micro",
        "trl",
        TRL,
        ("--micro", "16"),
        f"per_device_train_batch_size=16, a batch by accumulation; {EAGER}",
    ),
    Contender("ours", "ours", "ours_grpo.py", note="tunix_rt.rl.grpo as the pipeline sets it up"),
]
TARGETS = {"step": 2.5, "first step": 1.0, "RSS": 0.5}


def tabulate(
    results: dict[str, list[dict]],  # Measurements by contender
) -> list[dict]:
    "Turn measurements into one row a contender."
    rows = []
    for name, rounds in results.items():
        steps = sorted(one["step_seconds"] for one in rounds if "error" not in one)
        rows.append(
            {
                "contender": name,
                "step s": middle(rounds, "step_seconds"),
                "fastest-slowest": f"{steps[0]:.2f}-{steps[-1]:.2f}" if steps else "failed",
                "sampling s": middle(rounds, "sample_seconds"),
                "update s": middle(rounds, "update_seconds"),
                "step core-s": middle(rounds, "core_seconds"),
                "sampling core-s": middle(rounds, "sample_core_seconds"),
                "update core-s": middle(rounds, "update_core_seconds"),
                "first step s": middle(rounds, "first_step"),
                "first core-s": middle(rounds, "first_core_seconds"),
                "peak RSS MB": middle(rounds, "rss_mb"),
                "cores taken by others": middle(rounds, "others"),
            }
        )
    return rows


def compare(
    rows: list[dict],  # From `tabulate`
) -> list[dict]:
    "Set our figures against the targets, each beside the peer that is best at it."
    known = {row["contender"]: row for row in rows if row["step s"]}
    if "ours" not in known:
        return []
    ours = known.pop("ours")
    trl = [row for name, row in known.items() if name.startswith("trl")]
    lines = []

    def line(figure: str, peers: list[dict], key: str, target: float, *, faster: bool) -> None:
        if not peers:
            return
        best = min(peers, key=lambda row: row[key])
        ratio = best[key] / ours[key] if faster else ours[key] / best[key]
        met = ratio >= target if faster else ratio <= target
        what = f"{best['contender']} / ours" if faster else f"ours / {best['contender']}"
        lines.append(
            {
                "figure": f"{figure}, {what}",
                "measured": f"{ratio:.2f}",
                "target": target,
                "met": "yes" if met else "no",
            }
        )

    everyone = list(known.values())
    line("step s", everyone, "step s", TARGETS["step"], faster=True)
    line("step core-s", everyone, "step core-s", TARGETS["step"], faster=True)
    line("first step s", trl, "first step s", TARGETS["first step"], faster=False)
    line("first step core-s", trl, "first core-s", TARGETS["first step"], faster=False)
    line("peak RSS", trl, "peak RSS MB", TARGETS["RSS"], faster=False)
    return lines


def main() -> None:
    "Measure, tabulate and save."
    options = read_options(__doc__, "grpo", steps=5)
    contenders = choose(CONTENDERS, options.contenders)

    sections, raw, loads = {}, {}, []
    for name in options.sizes.split(","):
        loads.append(os.getloadavg())
        arguments = ["--size", name, "--steps", str(options.steps)]
        raw[name] = run_rounds(contenders, arguments, options.rounds, options.tries)
        loads.append(os.getloadavg())
        rows = tabulate(raw[name])
        sections[f"Size {name}"] = rows
        sections[f"Size {name}: targets"] = compare(rows)
    title = f"# A GRPO step, median of {options.rounds} interleaved rounds"
    explanation = (__doc__ or "").rsplit("\n\n", 1)[-1].strip()
    load = ", ".join(f"{one[0]:.1f}" for one in loads)
    explanation += f"\n\nLoad average of the machine before and after each size: {load}."
    raw["load"] = loads
    save(options.name, f"{title}\n\n{explanation}", sections, contenders, raw, vars(options))


if __name__ == "__main__":
    main()
