"""What tests/test_sampling.py runs in a process of its own: prompts on one device and on eight.

How many devices a processor pretends to be is settled before JAX starts, so the caller sets
XLA_FLAGS. One line of JSON is printed.
"""

from __future__ import annotations

import dataclasses
import json
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tunix_rt.inference.decode_loop import DecodeState, decode_loop, empty_state
from tunix_rt.inference.decode_step import prepare_decoder
from tunix_rt.inference.engine import generate
from tunix_rt.inference.kv_cache import cache_bytes
from tunix_rt.inference.sampling import SamplingParams
from tunix_rt.models.config import preset
from tunix_rt.models.gemma import Gemma, hidden_states, kernel_shapes, logits
from tunix_rt.models.lora import LoraConfig, add_lora, quantize
from tunix_rt.models.sharding import bytes_per_device, make_mesh, place
from tunix_rt.models.tokenizer import train_tokenizer

CONFIG = dataclasses.replace(
    preset("tiny"), vocabulary=512, layers=2, width=64, hidden=128, window=12
)
TOKENS = np.random.default_rng(0).integers(6, 500, (8, 20))
PROMPTS = [row[: 5 + 2 * index].tolist() for index, row in enumerate(TOKENS)]
WORDS = train_tokenizer(["Ann has 3 apples and buys 4 more."], vocabulary=512)


def build(kind: str) -> Gemma:
    "Build the same model every time; `kind` names what is special about it."
    model = Gemma(CONFIG, nnx.Rngs(0), scan_layers="scan_layers" in kind)
    model.embedding[...] = model.embedding[...] * 0.3  # Else it repeats its last token forever
    model.norm[...] = model.norm[...] + 3
    if "eight" in kind:
        quantize(model)
    if "lora" in kind:
        add_lora(model, LoraConfig(rank=4), nnx.Rngs(1))
        for block in [model.layers] if model.scan_layers else model.layers:
            for low in block.adapters.values():
                low.b[...] = low.b[...] + 0.02
    return model


def spread(model: Gemma, mesh: Any) -> Gemma:
    "Deal a model's parameters to the devices of a mesh."
    graph, state = nnx.split(model)
    return nnx.merge(graph, place(state, mesh))


def said(model: Gemma, rows: int) -> list[list[int]]:
    "Write greedily, with fewer rows than prompts."
    answers = generate(model, WORDS, PROMPTS, SamplingParams(max_new_tokens=16), batch_size=rows)
    return [answer.tokens for answer in answers]


def odds(model: Gemma, rows: int, **options: Any) -> list[Any]:
    "Sample, and keep the log-probabilities with the tokens."
    how = SamplingParams(
        max_new_tokens=16, temperature=0.7, samples=3, stop=("a", "e"), logprobs=True
    )
    return generate(model, WORDS, PROMPTS, how, batch_size=rows, **options)


@jax.jit
def plain_scores(model: Gemma, row: jax.Array, length: jax.Array) -> jax.Array:
    "Compute log-probabilities at temperature 0.7 without a cache."
    places = jnp.arange(row.shape[1])[None]
    hidden = hidden_states(model, row, places, (places < length).astype(jnp.int32))
    return jax.nn.log_softmax(logits(model, hidden[0]) / 0.7)


def plain(model: Gemma, one: Any) -> list[float]:
    "Compute the log-probabilities of a completion by a plain forward pass."
    ids = one.tokens + [one.stop_reason] * isinstance(one.stop_reason, int)
    row, read = np.zeros((1, 64), np.int32), one.prompt_tokens
    row[0, : read + len(ids)] = PROMPTS[one.prompt] + ids
    scores = np.asarray(plain_scores(model, row, read + len(ids)))[read - 1 :]
    return scores[np.arange(len(ids)), ids].tolist()


def step_text(model: Gemma, mesh: Any) -> tuple[str, DecodeState]:
    "Compile the loop for a mesh and show what it became."
    with jax.set_mesh(mesh):
        decoder = prepare_decoder(model, dtype=jnp.float32, turned=False)
        state = empty_state(config=CONFIG, batch_size=8, places=64, room=64, dtype=jnp.float32)
        loop = partial(
            decode_loop.lower, rule=SamplingParams().rule(), ends=(1,), dtype=jnp.float32
        )
        numbers = (np.int32(4), np.int32(8), np.int32(16))
        text = loop(decoder, state, np.zeros(8, bool), *numbers).compile().as_text()
    return text, state


def main() -> None:
    "Compare one device with meshes, and look into one of the programs."
    found: dict[str, Any] = {"kernels": sorted(set(kernel_shapes(CONFIG).values()))}
    cases = {"plain": (2, 2, 2), "stacked eight lora": (1, 4, 2), "lora": (8, 1, 1)}
    for kind, sides in cases.items():
        model = build(kind)
        there = spread(model, make_mesh(*sides))
        found[kind] = {"alone": said(model, 8), "mesh": said(there, 8)}
        one, other = odds(model, 8), odds(there, 32, prompt_length=32)
        assert len({each.completion_tokens for each in one}) > 4, "all end together"
        assert [each.tokens for each in one] == [each.tokens for each in other]
        recorded = [[each.logprobs for each in each_of] for each_of in (one, other)]
        found[kind]["logprobs"] = [*recorded, [plain(model, each) for each in one]]
    mesh = make_mesh(2, 2, 2)
    text, state = step_text(spread(build("plain"), mesh), mesh)
    shapes = re.findall(r"= \S*?\[([\d,]+)\]\S* all-gather", text)
    found["gathered"] = [[int(size) for size in shape.split(",")] for shape in shapes]
    found["held"] = bytes_per_device(state.kept)
    found["planned"] = cache_bytes(CONFIG, 8, 64, jnp.float32, mesh)
    found["whole"] = cache_bytes(CONFIG, 8, 64, jnp.float32)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
