"A model folder so small that a training of it is over as soon as its imports are."

from __future__ import annotations

from pathlib import Path

TEXTS = ["What is 47 plus 86?\nones: 7 + 6 = 13, write 3, carry 1\n<answer>133</answer>"] * 20


def small_model(
    folder: Path,  # Created
) -> Path:  # The same folder
    """Write a Gemma of one layer, with a tokenizer of its own, as our library writes models.

    It knows so few positions that no prompt leaves room for an answer: a training that ends asks
    it for none, which saves what writing would have to compile.
    """
    from flax import nnx

    from tunix_rt.models.config import preset
    from tunix_rt.models.gemma import Gemma
    from tunix_rt.models.tokenizer import train_tokenizer
    from tunix_rt.models.weights import save_model

    words = train_tokenizer(TEXTS, vocabulary=128)
    shape = preset("tiny").resized(
        vocabulary=len(words), width=32, layers=1, query_heads=2, key_heads=1, head_width=16,
        hidden=64, positions=16,
    )  # fmt: skip
    save_model(folder, Gemma(shape, nnx.Rngs(0)), words)
    return folder


def talking_model(
    folder: Path,  # Created
) -> Path:  # The same folder
    "Write a Gemma of two layers with room for an answer, which knows nothing."
    from flax import nnx

    from tunix_rt.models.config import preset
    from tunix_rt.models.gemma import Gemma
    from tunix_rt.models.tokenizer import train_tokenizer
    from tunix_rt.models.weights import save_model

    words = train_tokenizer(TEXTS, vocabulary=128)
    shape = preset("tiny").resized(vocabulary=len(words), width=32, layers=2, positions=512)
    save_model(folder, Gemma(shape, nnx.Rngs(0)), words)
    return folder
