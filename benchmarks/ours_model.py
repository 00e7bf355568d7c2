"""tunix_rt's Gemma-2 at the benchmark's sizes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from workload import Size

from tunix_rt.models.config import GemmaConfig
from tunix_rt.models.gemma import Gemma


def build_model(
    size: Size,  # The shape
    dtype: Any = jnp.float32,  # Of the weights
    *,
    scan_layers: bool = False,  # Whether the layers are compiled once, as one stack
) -> Gemma:  # Random weights
    "Build Gemma-2 with tunix_rt's own module."
    config = GemmaConfig(
        vocabulary=size.vocabulary,
        width=size.width,
        layers=size.layers,
        query_heads=size.heads,
        key_heads=size.kv_heads,
        head_width=size.head_width,
        hidden=size.mlp,
        query_scale=size.head_width,
        window=4096,
        attention_soft_cap=50.0,
        logit_soft_cap=30.0,
    )
    return Gemma(config, nnx.Rngs(0), dtype, scan_layers=scan_layers)
