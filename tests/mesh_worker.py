"""What tests/test_mesh.py runs in processes of its own: tiny trainings on pretended devices.

How many devices a processor pretends to be is settled before JAX starts, so the caller sets
XLA_FLAGS. Each call prints one line of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tunix_rt.core.errors import TrainingError
from tunix_rt.models.config import GemmaConfig, preset
from tunix_rt.models.gemma import Gemma
from tunix_rt.models.lora import LoraConfig, add_lora
from tunix_rt.models.sharding import bytes_per_device, feed, make_mesh, place
from tunix_rt.training.checkpoints import (
    Checkpoints,
    LeaderCheckpoints,
    restore_state,
    save_state,
)
from tunix_rt.training.config import TrainConfig
from tunix_rt.training.multihost import join_hosts, require_shared
from tunix_rt.training.packing import PackedBatch, get_batch
from tunix_rt.training.sft import sft_objective
from tunix_rt.training.train_step import Step, TrainState, make_step

ROWS, TIME = 16, 16
CONFIG = dataclasses.replace(preset("tiny"), vocabulary=512, layers=2, width=32, hidden=64)
QWEN = preset("qwen2.5-0.5b").resized(  # With biases, and a head of its own
    vocabulary=512, layers=1, width=32, hidden=64, query_heads=4, key_heads=2, head_width=16,
    query_scale=16.0, tied=False,
)  # fmt: skip
IDENTITY = {"model": "tiny", "data": "counting"}
STARTS = np.random.default_rng(0).integers(1, 400, (64, 1))
ONES = np.ones((64, TIME), np.int32)
COUNTING = PackedBatch(STARTS + np.arange(TIME) * ONES, ONES, np.arange(TIME) * ONES, ONES > 0)
COUNTING = PackedBatch(*(np.asarray(part, "i4") for part in COUNTING[:3]), COUNTING.loss_mask)


@cache
def small_model(lora: bool, scan_layers: bool, config: GemmaConfig = CONFIG) -> Gemma:
    "Make the same tiny model every time; drawn by NumPy, it waits for no compiler."

    def build() -> Gemma:
        model = Gemma(config, nnx.Rngs(0), scan_layers=scan_layers)
        if lora:
            targets = ("v_proj", "o_proj", "up_proj")
            add_lora(model, LoraConfig(rank=4, dropout=0.2, targets=targets), nnx.Rngs(1))
        return model

    def first(leaf: Any) -> jax.Array:
        return jnp.asarray(0.15 * draw.normal(size=leaf.shape), leaf.dtype)

    model, draw = nnx.eval_shape(build), np.random.default_rng(1)
    nnx.update(model, jax.tree.map(first, nnx.state(model)))
    return model


def prepare(kind: str, mesh: Any, micro_batch_size: int = 0) -> tuple[TrainState, Step]:
    "Prepare a training, say `lora stacked muon`."
    words = kind.split()
    train_config = TrainConfig(
        max_steps=10,
        batch_size=ROWS,
        seq_length=TIME,
        learning_rate=1e-2,
        warmup_steps=1,
        optimizer=words[-1],
        micro_batch_size=micro_batch_size,
    )
    config = QWEN if "qwen" in words else CONFIG
    model = small_model("lora" in words, "stacked" in words, config)
    state, step = make_step(model, sft_objective(train_config), train_config, mesh=mesh)
    if mesh is None:  # What is restored is tied to its device: so one program serves both
        state = jax.device_put(state, jax.devices()[0])
    return state, step


def go_on(state: TrainState, step: Step, first: int, last: int) -> tuple[TrainState, list[float]]:
    "Take some steps and note the losses."
    losses = []
    for number in range(first, last):
        state, figures = step(state, get_batch(COUNTING, number, size=ROWS, seed=0))
        losses.append(float(figures["loss"]))
    return state, losses


def sharing(state: TrainState) -> dict[str, Any]:
    "Compare what one device holds with what one device would hold alone."
    whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    parts = {"params": (state.params, whole.params), "moments": (state.opt_state, whole.opt_state)}
    return {name: (bytes_per_device(a), bytes_per_device(b)) for name, (a, b) in parts.items()}


CASES = {  # What is trained -> a mesh of data, fsdp, tensor, and rows of a slice
    "full adamw": (1, 4, 2, 0),
    "full stacked muon": (2, 2, 2, 8),
    "lora stacked adamw": (2, 2, 2, 0),
    "lora muon": (8, 1, 1, 0),
    "full qwen adamw": (2, 2, 2, 0),
}
HELD = {"full adamw": (8, 1, 1), "full stacked muon": (1, 8, 1)}  # Begun there, but not trained


def compare(folder: Path, hosts: Path) -> dict[str, Any]:
    "Train on one device and on meshes; move checkpoints to other meshes, and on from hosts."
    found: dict[str, Any] = {}
    for kind, (*sides, micro_batch_size) in CASES.items():
        alone, step_alone = prepare(kind, None)
        alone, expected = go_on(alone, step_alone, 0, 3)
        state, step = prepare(kind, make_mesh(*sides), micro_batch_size)
        share = sharing(state)
        state, losses = go_on(state, step, 0, 3)
        found[f"{kind} {sides}"] = share | {"losses": losses, "expected": expected}
        if "stacked" in kind:
            found[f"{kind} moved"] = move(folder / kind, state, step, step_alone, alone)
        if kind == "full adamw":
            found["after hosts"] = after_hosts(hosts, step_alone, alone)
    for kind, others in HELD.items():
        found[f"{kind} {list(others)}"] = sharing(prepare(kind, make_mesh(*others))[0])
    return found


def move(
    folder: Path, state: TrainState, step: Step, step_alone: Step, alone: TrainState
) -> dict[str, Any]:
    "Save on a mesh while training goes on; restore on one of another shape, and on one device."
    saved = Checkpoints(folder, IDENTITY)
    copy, like = jax.device_get(state), jax.tree.map(jnp.array, alone)
    save_state(saved, 3, state, loss=1.0, memory={})
    _, there = go_on(state, step, 3, 5)
    saved.wait()
    _, one, _ = restore_state(saved, like)  # type: ignore[misc]
    _, other, _ = restore_state(saved, place(like, make_mesh(1, 2, 4)))  # type: ignore[misc]
    same = jax.tree.map(lambda *x: all((x[0] == y).all() for y in x[1:]), copy, one, other)
    names = jax.tree_util.tree_leaves_with_path(saved.manager.item_metadata(3).state["params"])
    saved.close()
    return {
        "losses": there,
        "expected": go_on(alone, step_alone, 3, 5)[1],
        "restored": go_on(one, step_alone, 3, 5)[1],
        "same": bool(all(jax.tree.leaves(same))),
        "held": (bytes_per_device(other.params), bytes_per_device(one.params)),
        "names": sorted({str(path[-1].key) for path, _ in names}),
    }


def compiled(lora: bool) -> dict[str, Any]:
    "Look into a compiled step: what is exchanged, and how large its largest array is."
    rows, time, words = 32, 64, 8192
    config = dataclasses.replace(CONFIG, vocabulary=words, layers=1)
    train_config = TrainConfig(
        batch_size=rows, seq_length=time, dtype="bfloat16" if lora else "float32"
    )

    def build() -> Gemma:
        model = Gemma(config, nnx.Rngs(0), jnp.bfloat16 if lora else jnp.float32)
        if lora:
            add_lora(model, LoraConfig(rank=4), nnx.Rngs(1))
        return model

    model = nnx.eval_shape(build)
    state, step = make_step(
        model, sft_objective(train_config), train_config, mesh=make_mesh(1, 4, 2)
    )
    shapes = (jax.ShapeDtypeStruct((rows, time), kind) for kind in ("i4", "i4", "i4", "?"))
    batch = PackedBatch(*shapes)
    with step.active():
        traced = step.update.trace(state, step.frozen, batch)
        text = traced.lower().compile().as_text()
    found = re.findall(r"[a-z]+\d+\[([\d,]+)\]", text)
    return {
        "gathered": re.findall(r"= \S*\[([\d,]+)\]\S* all-gather", text),
        "largest": max(int(np.prod([int(size) for size in each.split(",")])) for each in found),
        "table_in_float32": str(traced.jaxpr).count(f"f32[{words // 8},{CONFIG.width}]"),
    }


def host(coordinator: str, index: int, folder: Path) -> dict[str, Any]:
    "Be one of two processes that train together."
    met = join_hosts(coordinator, 2, index)
    mesh = make_mesh(fsdp=-1)
    state, step = prepare("full adamw", mesh)
    batch = feed(get_batch(COUNTING, 0, size=ROWS, seed=0), mesh)
    mine = sum(shard.data.shape[0] for shard in batch.tokens.addressable_shards)
    state, losses = go_on(state, step, 0, 3)
    saved = Checkpoints(folder, IDENTITY)
    save_state(saved, 3, state, loss=1.0, memory={})
    saved.close()
    led = through_leader(folder.with_name(f"led-{index}"), state)
    held = sharing(state)["params"]
    return {"met": met, "losses": losses, "rows": mine, "held": held, "led": led}


def through_leader(folder: Path, state: TrainState) -> dict[str, Any]:
    "Save and restore where the folders of the two processes are two disks."
    saved = LeaderCheckpoints(folder, IDENTITY)
    before = (saved.steps(), restore_state(saved, state))
    save_state(saved, 3, state, loss=1.0, memory={"seconds": 1.5})
    saved.wait()
    step, back, memory = restore_state(saved, state)  # type: ignore[misc]
    saved.close()

    def same(one: jax.Array, other: jax.Array) -> bool:
        mine = zip(one.addressable_shards, other.addressable_shards, strict=True)
        return one.sharding == other.sharding and all((a.data == b.data).all() for a, b in mine)

    try:
        require_shared(folder)
        refusal = ""
    except TrainingError as error:
        refusal = str(error)
    require_shared(folder.parent)
    return {
        "before": before,
        "files": folder.exists(),
        "after": (step, memory),
        "same": all(jax.tree.leaves(jax.tree.map(same, state, back))),
        "refusal": refusal,
    }


def after_hosts(folder: Path, step: Step, alone: TrainState) -> dict[str, Any]:
    "Go on alone from what two processes saved, and from the same without them."
    losses = {}
    for name in (folder.name, "led-0"):
        saved = Checkpoints(folder.with_name(name), IDENTITY)
        _, restored, _ = restore_state(saved, jax.tree.map(jnp.array, alone))  # type: ignore[misc]
        saved.close()
        losses[name] = go_on(restored, step, 3, 5)[1]
    return {"losses": losses, "expected": go_on(alone, step, 3, 5)[1]}


def main(task: str, *words: str) -> None:
    "Do one task and print what was found."
    if task == "host":
        found = host(words[0], int(words[1]), Path(words[2]))
    else:
        found = compare(Path(words[0]), Path(words[1]))
        found |= {f"{kind} compiled": compiled(kind == "lora") for kind in ("full", "lora")}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
