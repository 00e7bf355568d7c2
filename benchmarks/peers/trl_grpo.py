"""Learn from rewards with TRL's GRPOTrainer; started by `python benchmarks/grpo.py`.

Settings: float32, eager attention (the only kernel that honors Gemma-2's soft caps), no gradient
checkpointing, no clipping, TRL's default loss (dapo, no KL penalty), transformers' own generate.
"""

from __future__ import annotations

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl_sft import build_model
from workload import (
    ANSWER_TOKENS,
    GENERATIONS,
    PAD,
    PROMPTS,
    SIZES,
    Size,
    StepClock,
    arguments,
    even_share,
    prompts,
)

WARM_UP = 2  # Steps before the clock counts


def build_tokenizer(
    size: Size,  # Sets the vocabulary
) -> PreTrainedTokenizerFast:  # Token ids as numbers in text
    "Build a tokenizer whose end token the model cannot say, so that no answer ends early."
    words = {str(n): n for n in range(size.vocabulary)} | {"<eos>": size.vocabulary}
    table = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=table, pad_token=str(PAD), eos_token="<eos>")


def even(completion_ids: list[list[int]], **columns: object) -> list[float]:
    "Reward the share of even token ids."
    assert {len(tokens) for tokens in completion_ids} == {ANSWER_TOKENS}
    return [even_share(tokens) for tokens in completion_ids]


class Ticker(TrainerCallback):
    "Tell the clock where steps begin and end."

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.clock.start()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.clock.step_done()


def main() -> None:
    "Take a first step, one to warm up, then `--steps` against the clock."
    options = arguments(steps=5, micro=PROMPTS * GENERATIONS)
    size, clock = SIZES[options.size], StepClock()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = build_model(size)
    model.generation_config.eos_token_id = size.vocabulary
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=WARM_UP + options.steps,
        per_device_train_batch_size=options.micro,
        gradient_accumulation_steps=PROMPTS * GENERATIONS // options.micro,
        num_generations=GENERATIONS,
        max_completion_length=ANSWER_TOKENS,
        learning_rate=1e-5,
        bf16=False,
        gradient_checkpointing=False,
        max_grad_norm=0.0,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    texts = [" ".join(map(str, row)) for row in prompts(size).tolist()]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=even,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=build_tokenizer(size),
        callbacks=[Ticker(clock)],
    )
    # This one function samples, rewards and compares.
    trainer._generate_and_score_completions = clock.timed(trainer._generate_and_score_completions)
    trainer.train()
    clock.report(WARM_UP, PROMPTS * GENERATIONS * ANSWER_TOKENS)


if __name__ == "__main__":
    main()
