"""Fine-tune with transformers and PEFT on an accelerator; `python benchmarks/gpu_sft.py` starts it.

The loop that the Trainer runs, without its logging: bfloat16 autocast, the model's own loss over
full logits, gradients clipped to 1, fused AdamW. LoRA: a frozen bfloat16 base and the float32
adapters that PEFT makes. Full: float32 parameters. Packed rows are told apart by their restarting
positions, which transformers turns into masks.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma2Config
from workload import BOS, EOS, PAD, SIZES, Size, arguments, report

WARM_UP = 2  # Steps before the clock starts
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def build_model(
    size: Size,  # The shape
    dtype: torch.dtype,  # Of the weights
    attention: str,  # "eager" or "flex_attention": the two that honor Gemma-2's soft caps
) -> torch.nn.Module:  # Random weights, on the device
    "Build Gemma-2 at this size."
    config = Gemma2Config(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_width,
        query_pre_attn_scalar=size.head_width,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=BOS,
    )
    torch.manual_seed(0)
    with torch.device(DEVICE):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)


def wait() -> None:
    "Let the device finish."
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    "Warm up, then time `--steps` over the batches that everyone gets."
    options = arguments(
        mode="lora", attention="eager", checkpointing=0, batches="", steps=0, rank=16
    )
    size = SIZES[options.size]
    steps = options.steps or size.steps
    with np.load(options.batches) as held:
        tokens, positions, counted = (
            torch.from_numpy(held[name]).long().to(DEVICE)
            for name in ("tokens", "positions", "counted")
        )
    labels = tokens.where((counted > 0) & (positions > 0), -100)

    lora = options.mode == "lora"
    model = build_model(size, torch.bfloat16 if lora else torch.float32, options.attention)
    model.config.use_cache = False
    if options.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora:
        rank = options.rank
        wanted = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS)
        model = get_peft_model(model, wanted)
    model.train()
    trained = [each for each in model.parameters() if each.requires_grad]
    fused = DEVICE == "cuda"
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0, fused=fused)

    def step(number: int) -> torch.Tensor:
        here = slice(number * size.batch, (number + 1) * size.batch)
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = model(
                input_ids=tokens[here], position_ids=positions[here], labels=labels[here]
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    first = 0.0
    start = time.perf_counter()
    for number in range(WARM_UP):
        step(number)
        wait()
        first = first or time.perf_counter() - start
    start = time.perf_counter()
    for number in range(WARM_UP, WARM_UP + steps):
        loss = step(number)
    wait()
    report(
        seconds=time.perf_counter() - start,
        steps=steps,
        first_step=first,
        loss=float(loss),
        peak_bytes=torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None,
    )


if __name__ == "__main__":
    main()
