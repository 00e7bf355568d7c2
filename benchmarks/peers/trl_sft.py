"""Fine-tune with TRL's SFTTrainer; started by `python benchmarks/sft.py --contenders trl-plain`.

Settings: float32, eager attention (the one kernel transformers has on a CPU for Gemma-2's soft
caps), no gradient checkpointing, no clipping, TRL's chunked loss and default fused AdamW.
"""

from __future__ import annotations

import gc
import tempfile
import time

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTConfig, SFTTrainer
from workload import BOS, EOS, PAD, SIZES, Size, arguments, report, sequences


def build_model(
    size: Size,  # The shape
) -> Gemma2ForCausalLM:  # Random weights, float32
    "Build Gemma-2 at this size, with the attention kernel that honors its soft caps."
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
        attn_implementation="eager",
        dtype="float32",
    )
    return Gemma2ForCausalLM(config)


def build_tokenizer(
    size: Size,  # Sets the vocabulary
) -> PreTrainedTokenizerFast:  # Never encodes anything: the data is already tokens
    "Build the tokenizer that SFTTrainer insists on."
    words = {"<pad>": PAD, "<eos>": EOS} | {str(n): n for n in range(2, size.vocabulary)}
    table = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=table, pad_token="<pad>", eos_token="<eos>")


class Clock(TrainerCallback):
    "Time the loop, and count what the model is fed."

    def __init__(self) -> None:
        self.tokens = self.pairs = self.slots = 0
        self.first_step = 0.0

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.start, self.cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.first_step = self.first_step or time.perf_counter() - self.start

    def on_train_end(self, *_: object, **__: object) -> None:
        self.seconds = time.perf_counter() - self.start
        self.core_seconds = time.process_time() - self.cpu

    def count(
        self,
        inputs: dict[str, torch.Tensor],  # One micro-batch, as the collator made it
    ) -> None:
        "Add the tokens and visible pairs of one micro-batch."
        self.slots += inputs["input_ids"].numel()
        if "position_ids" in inputs:  # Packed: positions restart, and there are no pads
            self.tokens += inputs["position_ids"].numel()
            self.pairs += int((inputs["position_ids"] + 1).sum())
        else:
            lengths = inputs["attention_mask"].sum(-1)
            self.tokens += int(lengths.sum())
            self.pairs += int((lengths * (lengths + 1) // 2).sum())


def train(
    model: Gemma2ForCausalLM,  # Trained in place
    size: Size,  # Row length and batch
    rows: list[np.ndarray],  # Token ids
    mode: str,  # "plain", "grouped", "packed" or "packed-rows"
    steps: int,  # Optimizer steps to take
) -> Clock:
    "Run SFTTrainer for `steps` and time it."
    clock = Clock()
    one_row = mode == "packed-rows"
    options = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_length=size.seq,
        max_steps=steps,
        per_device_train_batch_size=1 if one_row else size.batch,
        gradient_accumulation_steps=size.batch if one_row else 1,
        packing=mode.startswith("packed"),
        # Packed rows come longest sequences first, so they are shuffled, as is the default.
        train_sampling_strategy="random" if mode.startswith("packed") else "sequential",
        bf16=False,
        gradient_checkpointing=False,
        max_grad_norm=0.0,
        learning_rate=1e-4,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=model,
        args=options,
        train_dataset=Dataset.from_dict({"input_ids": [row.tolist() for row in rows]}),
        processing_class=build_tokenizer(size),
        callbacks=[clock],
    )
    compute_loss = trainer.compute_loss

    def counting(model: object, inputs: dict[str, torch.Tensor], *args: object, **kwargs: object):
        clock.count(inputs)
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = counting
    trainer.train()
    return clock


def grouped_by_length(
    pool: list[np.ndarray],  # Sequences in random order
    batch: int,  # Sequences in a step
    steps: int,  # Steps that will be taken
) -> list[np.ndarray]:  # `steps` batches in a row
    """Order sequences as train_sampling_strategy="group_by_length" does.

    It sorts megabatches of 50 batches, longest first, so a run shorter than an epoch would see
    long sequences only. Here the whole pool, about 50 batches, is one megabatch as it would be in
    a dataset of real size, and the steps are taken at even distances through it.
    """
    lengths = [len(row) for row in pool]
    order = get_length_grouped_indices(lengths, batch, mega_batch_mult=len(pool) // batch)
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    chosen = np.linspace(0, len(batches) - 1, steps).round().astype(int)
    return [pool[index] for batch_index in chosen for index in batches[batch_index]]


def main() -> None:
    "Warm up for one step on other sequences, then time `--steps`."
    options = arguments(mode="plain", steps=0)
    size = SIZES[options.size]
    steps = options.steps or size.steps
    torch.set_num_threads(2)
    torch.manual_seed(0)

    model = build_model(size)
    first = train(model, size, sequences(size, 4 * size.batch, seed=1), options.mode, steps=1)
    gc.collect()

    rows = sequences(size)
    if options.mode == "grouped":
        rows = grouped_by_length(rows, size.batch, steps)
    clock = train(model, size, rows, options.mode, steps)
    report(
        tokens=clock.tokens,
        pairs=clock.pairs,
        slots=clock.slots,
        steps=steps,
        seconds=clock.seconds,
        core_seconds=clock.core_seconds,
        first_step=first.first_step,
    )


if __name__ == "__main__":
    main()
