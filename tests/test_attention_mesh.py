"""Attention over eight devices must read what it reads on one: values and gradients.

The eight devices are one processor that is told to pretend, before JAX starts; so the work is done
in a process of its own, which reports how far each case strayed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compile_fast import COMPILE_FAST

CASES = [
    "splash, key heads split, a cap",
    "splash, one key head for all, a window",
    "splash, two layers scanned and recomputed",
    "cudnn's call, rows that do not come out even",
    "cudnn's call, everything split",
    "the plain path, placed",
]


@pytest.fixture(scope="module")
def strayed() -> dict[str, float]:
    "For each case, the largest difference from one device, as a share of the largest value."
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve())],
        capture_output=True,
        text=True,
        timeout=600,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {COMPILE_FAST}",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_the_same_on_eight_devices(strayed: dict[str, float], case: str) -> None:
    assert strayed[case] < 1e-5


def test_nothing_is_exchanged(strayed: dict[str, float]) -> None:
    "Rows and heads are independent, so a device that has its share needs nothing from another."
    assert strayed["messages between devices"] == 0


def main() -> None:
    "Compute every case on the mesh and on one device."
    from functools import partial
    from unittest.mock import patch

    import jax
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from tunix_rt.models import attention_backends as kernels
    from tunix_rt.models.attention import packed_attention

    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    time, width = 128, 16
    row = [[1] * 50 + [2] * 60 + [0] * 18, [1] * 10 + [2] * 100 + [3] * 18]
    found: dict[str, float] = {}

    def compare(case: str, read, *, rows: int = 4, key_heads: int = 2, layers: int = 1, **given):
        "Note how far a case strays, and give back the program that ran on the mesh."
        segment_ids, draw = np.array((row * rows)[:rows]), np.random.default_rng(0)
        shapes = [(rows, heads, time, width) for heads in (4, 4, key_heads, key_heads)]
        wanted, *x = (draw.normal(size=shape).astype("f4") for shape in shapes)
        given["scale"] = 0.25

        def run(read, wanted, *x):
            def all_layers(query, key, value):
                layer = jax.checkpoint(lambda x: x + read(x, key, value, segment_ids, **given))
                if layers == 1:
                    return read(query, key, value, segment_ids, **given)
                return jax.lax.scan(lambda x, _: (layer(x), None), query, length=layers)[0]

            out, back = jax.vjp(all_layers, *x)
            return out, *back(wanted)

        placed = [wanted, *x]
        if rows % 4 == 0:
            sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
            placed = [jax.device_put(each, sharding) for each in placed]
        with jax.set_mesh(mesh):
            program = jax.jit(partial(run, read)).lower(*placed).compile()
            ours = program(*placed)
        plain = jax.jit(partial(run, packed_attention))(wanted, *x)
        pairs = [[np.asarray(x) for x in pair] for pair in zip(ours, plain, strict=True)]
        found[case] = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
        return program

    splash = partial(kernels.attend, implementation="splash")
    call = partial(kernels.attend, implementation="cudnn")
    program = compare(CASES[0], splash, soft_cap=3.0)
    compare(CASES[1], splash, key_heads=1, window=30)
    compare(CASES[2], splash, layers=2, soft_cap=3.0, window=30)
    through_xla = partial(kernels.cudnn_attention, program="xla")
    with patch.object(kernels, "cudnn_attention", through_xla):
        compare(CASES[3], call, rows=3, window=30)
        compare(CASES[4], call)
    compare(CASES[5], packed_attention, soft_cap=3.0, window=30)

    words = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    found["messages between devices"] = sum(program.as_text().count(word) for word in words)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
