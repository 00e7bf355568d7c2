"""Compare supervised fine-tuning of Gemma-2-2B on one accelerator: speed, use of the card, memory.

    python benchmarks/gpu_sft.py
    python benchmarks/gpu_sft.py --contenders ours-lora,transformers-lora --rounds 1
    python benchmarks/gpu_sft.py --toy        # a toy size, on whatever there is: tries every part

It needs a JAX that sees the card (`pip install -U "jax[cuda13]"`) and makes an environment for
torch, transformers and PEFT; TUNIX_RT_BENCH_TORCH names an interpreter that has them already.

So far this has been run with `--toy` on a processor only, which shows that every part works and
says nothing about speed: no figures of a card are kept in benchmarks/results until one has been
measured.

Everyone trains the same Gemma-2-2B shape, with random weights, in bfloat16, on the same packed
rows of 2,048 tokens: sequences of 40 to 2,048 random tokens, told apart in the mask. LoRA has rank
16 on all seven projections. Tokens are non-pad tokens. The share of the card (MFU) is useful
arithmetic, over the card's own bfloat16 matrix product measured in the same rounds. Useful are, for
each token and each weight that multiplies (the token lookup is not one), 6 operations, or 4 where
the weight is frozen; and 12 for each attention feature and each (query, key) pair that is visible.
Pads, masked pairs and what is computed a second time earn nothing. Peak memory is what each
framework's allocator counted.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from harness import Contender, choose, markdown_table, middle, run_rounds, save
from workload import SIZES, Size, loss_mask, sequences, useful_flops

from tunix_rt.training.packing import PackedBatch, TokenizedExample, get_batch, pack

WARM_UP = 2  # Steps that the contenders take before their clocks start
RANK = 16
OURS, PEER = "ours_gpu_sft.py", "peers/transformers_gpu_sft.py"
MODES = {"lora": "LoRA", "full": "all weights"}


def contenders_of(
    mode: str,  # "lora" or "full"
) -> list[Contender]:
    "List who trains in this mode."

    def one(name: str, environment: str, script: str, note: str, *options: str) -> Contender:
        given = ("--mode", mode, *options)
        return Contender(f"{name}-{mode}", environment, script, given, note, accelerator=True)

    ours = "tunix_rt.training, " + MODES[mode]
    theirs = f"transformers{' with PEFT' if mode == 'lora' else ''}, {MODES[mode]}"
    again = ("--checkpointing", "1")
    return [
        one("ours", "ours", OURS, f"{ours}, no rematerialization"),
        one("ours-remat", "ours", OURS, f"{ours}, each layer computed again", "--remat", "full"),
        one("transformers", "torch", PEER, f"{theirs}, eager attention"),
        one("transformers-again", "torch", PEER, f"{theirs}, eager, checkpointing", *again),
        one("transformers-flex", "torch", PEER, f"{theirs}, flex", "--attention", "flex_attention"),
        one(
            "transformers-flex-again",
            "torch",
            PEER,
            f"{theirs}, flex attention, checkpointing",
            "--attention",
            "flex_attention",
            *again,
        ),
    ]


CONTENDERS = [contender for mode in MODES for contender in contenders_of(mode)]
SPEED, SHARE, MEMORY = 1.5, 0.45, 0.5  # Targets: times transformers, of matmul, of its memory


def batches_for(
    size: Size,  # Row length and batch
    steps: int,  # Timed steps
) -> list[PackedBatch]:  # Warm-up included
    "Pack the sequences that everyone trains on into one batch for each step."
    needed = 2 * (WARM_UP + steps) * size.batch
    drawn = sequences(size, 2 * needed)
    rows = pack([TokenizedExample(each, np.ones(len(each), bool)) for each in drawn], size.seq)
    return [get_batch(rows, step, size=size.batch, seed=0) for step in range(WARM_UP + steps)]


def useful(
    size: Size,  # The model
    mode: str,  # "lora" or "full"
    timed: list[PackedBatch],  # The batches on the clock
) -> dict[str, float]:  # tokens, and flops
    "Count the arithmetic that these batches need."
    lengths = [np.bincount(ids[ids > 0])[1:] for batch in timed for ids in batch.segment_ids]
    work = loss_mask(np.concatenate(lengths))
    flops = useful_flops(size, **work)
    if mode == "lora":
        heads = size.head_width * (2 * size.heads + 2 * size.kv_heads)
        both_sides = 4 * size.width + heads + 3 * (size.width + size.mlp)
        adapters = size.layers * RANK * both_sides
        flops += (6.0 * adapters - 2.0 * size.matmul_parameters) * work["tokens"]
    return {"tokens": work["tokens"], "flops": flops}


def tabulate(
    size: Size,  # For the arithmetic
    mode: str,  # "lora" or "full"
    results: dict[str, list[dict]],  # Measurements by contender
    timed: list[PackedBatch],  # The batches on the clock
    matmul: float,  # FLOP/s
) -> list[dict]:
    "Turn measurements into one row a contender."
    work, rows = useful(size, mode, timed), []
    for name, rounds in results.items():
        for one in (one for one in rounds if "error" not in one):
            one["tokens_per_second"] = work["tokens"] / one["seconds"]
            one["mfu"] = work["flops"] / one["seconds"] / matmul
            if one["peak_bytes"]:
                one["peak_gib"] = one["peak_bytes"] / 2**30
        share = middle(rounds, "mfu")
        rows.append(
            {
                "contender": name,
                "tokens/s": middle(rounds, "tokens_per_second"),
                "MFU": share and f"{share:.1%}",
                "peak GiB": middle(rounds, "peak_gib"),
                "first step s": middle(rounds, "first_step"),
                "loss": middle(rounds, "loss"),
                "failed": rounds[-1]["error"].splitlines()[-1][:80]
                if "error" in rounds[-1]
                else None,
            }
        )
    return rows


def compare(
    mode: str,  # "lora" or "full"
    rows: list[dict],  # From `tabulate`
) -> list[dict]:
    "Set our best against the best of transformers, and both against the targets."

    def best(mine: bool, figure: str, choose: type | object) -> float | None:
        found = [
            row[figure]
            for row in rows
            if row["contender"].startswith("ours") == mine and row[figure]
        ]
        return choose(found) if found else None

    def line(figure: str, measured: float | None, target: float, met: bool) -> dict:
        shown = None if measured is None else f"{measured:.2f}"
        verdict = None if measured is None else "yes" if met else "no"
        return {"figure": figure, "measured": shown, "target": target, "met": verdict}

    def ratio(figure: str, choose: object) -> float | None:
        mine, theirs = best(True, figure, choose), best(False, figure, choose)
        return mine / theirs if mine and theirs else None

    shares = [float(row["MFU"].strip("%")) / 100 for row in rows if row["MFU"]]
    ours = [share for share, row in zip(shares, rows, strict=False) if "ours" in row["contender"]]
    share = max(ours, default=None)
    faster, smaller = ratio("tokens/s", max), ratio("peak GiB", min)
    return [
        line(f"{mode}: MFU, ours", share, SHARE, (share or 0) >= SHARE),
        line(f"{mode}: tokens/s, ours / transformers", faster, SPEED, (faster or 0) >= SPEED),
        line(f"{mode}: least peak memory", smaller, MEMORY, (smaller or 9) <= MEMORY),
    ]


def main() -> None:
    "Measure, tabulate and save."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--toy", action="store_true", help="a toy size, nothing saved")
    parser.add_argument("--contenders", default="all", help="comma-separated names")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each contender")
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps (0: by size)")
    parser.add_argument("--name", default="gpu_sft", help="first part of the result files' names")
    options = parser.parse_args()
    size = SIZES["toy" if options.toy else "gemma-2-2b"]
    steps = options.steps or size.steps
    chosen = choose(CONTENDERS, options.contenders)
    yardstick = ("--side", "512" if options.toy else "8192", "--dtype", "bfloat16")
    matmul = Contender("matmul", "ours", "matmul_rate.py", yardstick, accelerator=True)

    batches = batches_for(size, steps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batches.npz"
        scan_layers = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        np.savez(path, **dict(zip(PackedBatch._fields, scan_layers, strict=True)))
        arguments = ["--size", size.name, "--steps", str(steps)]
        rates = run_rounds([matmul], arguments, options.rounds)["matmul"]
        arguments += ["--batches", str(path), "--rank", str(RANK)]
        raw = run_rounds(chosen, arguments, options.rounds)

    speed = (middle(rates, "gflops") or float("nan")) * 1e9
    sections, lines = {}, []
    for mode, words in MODES.items():
        mine = {name: found for name, found in raw.items() if name.endswith(mode)}
        if mine:
            rows = tabulate(size, mode, mine, batches[WARM_UP:], speed)
            sections[f"{words}: best bfloat16 matmul {speed / 1e12:,.1f} TFLOP/s"] = rows
            lines += compare(mode, rows)
    if options.toy:
        print("\n" + "\n\n".join(map(markdown_table, sections.values())))
        print("\na toy size: every part ran, and the figures say nothing about a card")
        return
    sections["Targets"] = lines
    title = f"# Fine-tuning Gemma-2-2B on one card, median of {options.rounds} interleaved rounds"
    explanation = (__doc__ or "").rsplit("\n\n", 1)[-1].strip()
    settings = vars(options)
    device = next((one["device"] for one in rates if "device" in one), "")
    save(options.name, f"{title}\n\n{explanation}", sections, chosen, raw, settings, device=device)


if __name__ == "__main__":
    main()
