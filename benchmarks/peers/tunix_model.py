"""google-tunix's Gemma-2 at the benchmark's sizes: float32, nothing rematerialized."""

from __future__ import annotations

from flax import nnx
from tunix.models.gemma import model as gemma
from workload import Size


def build_model(
    size: Size,  # The shape
) -> gemma.Gemma:  # Random weights, float32
    "Build Gemma-2 with google-tunix's own module."
    kinds = (gemma.AttentionType.LOCAL_SLIDING, gemma.AttentionType.GLOBAL)
    config = gemma.ModelConfig(
        num_layers=size.layers,
        num_embed=size.vocabulary,
        embed_dim=size.width,
        hidden_dim=size.mlp,
        num_heads=size.heads,
        head_dim=size.head_width,
        num_kv_heads=size.kv_heads,
        final_logit_softcap=30.0,
        attn_logits_soft_cap=50.0,
        sliding_window_size=4096,
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
        attention_types=kinds * (size.layers // 2),
        remat_config=gemma.RematConfig.NONE,
    )
    return gemma.Gemma(config, rngs=nnx.Rngs(params=0))
