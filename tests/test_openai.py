"A served model, asked by the official client of OpenAI."

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from small_model import talking_model

openai = pytest.importorskip("openai")
KEY = "a-key-that-nobody-guesses"
CHAT = [{"role": "user", "content": "What is 47 plus 86?"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "A tiny model behind `tunix-rt serve-model`, in a process of its own: process and address."
    root = tmp_path_factory.mktemp("served")
    talking_model(root / "small")
    start = "from tunix_rt.cli.app import main; main()"
    command = [sys.executable, "-c", start, "serve-model", "small", "--port", "0"]
    known = {"TUNIX_RT_ROOT": str(root), "TUNIX_RT_TOKEN": KEY, "JAX_PLATFORMS": "cpu"}
    log = root / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=os.environ | known, stderr=file, cwd=root)
    for _ in range(900):
        if found := re.search(r"listening on (http://\S+)", log.read_text()):
            break
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    yield process, found[1]
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served[1]}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def running(served) -> int:
    "Responses that the server is writing."
    told = httpx.get(f"{served[1]}/health").json()["models"]["small"]
    return told["running"] + told["waiting"]


def comes_to_rest(served) -> bool:
    "Whether every row is free within a few seconds."
    for _ in range(100):
        if running(served) == 0:
            return True
        time.sleep(0.05)
    return False


def test_a_conversation_whole_and_as_a_stream(client):
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").owned_by == "tunix_rt"
    asked = {"model": "small", "messages": CHAT, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    choice = whole.choices[0]
    assert choice.finish_reason in ("length", "stop")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    usage = {"include_usage": True}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options=usage))
    said = "".join(piece.delta.content or "" for each in chunks for piece in each.choices)
    assert said == choice.message.content
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason


def test_samples_seeds_and_stop(client):
    asked = {"model": "small", "messages": CHAT, "max_tokens": 12, "temperature": 1.5, "n": 3}
    one = client.chat.completions.create(**asked, seed=5)
    two = client.chat.completions.create(**asked, seed=5)
    texts = [choice.message.content for choice in one.choices]
    assert texts == [choice.message.content for choice in two.choices]
    assert len(set(texts)) > 1 and one.usage.completion_tokens > 12
    assert texts != [
        choice.message.content for choice in client.chat.completions.create(**asked).choices
    ]
    long = client.completions.create(model="small", prompt="What is", max_tokens=30, temperature=0)
    text = long.choices[0].text
    middle = text[len(text) // 2 : len(text) // 2 + 2]
    cut = client.completions.create(
        model="small", prompt="What is", max_tokens=30, temperature=0, stop=[middle, "never"]
    ).choices[0]
    assert cut.text == text[: text.index(middle)] and cut.finish_reason == "stop"
    systems = [{"role": "system", "content": "Be brief."}, *CHAT]
    told = client.chat.completions.create(model="small", messages=systems, max_tokens=3)
    assert told.usage.prompt_tokens > one.usage.prompt_tokens


def test_log_probabilities(client):
    chat = client.chat.completions.create(
        model="small", messages=CHAT, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    entries = chat.choices[0].logprobs.content
    assert len(entries) == chat.usage.completion_tokens
    assert all(each.top_logprobs[0].logprob == each.logprob <= 0 for each in entries)
    asked = {
        "model": "small",
        "prompt": [[2, 40, 41], [2, 40, 41, 50]],
        "logprobs": 1,
        "echo": True,
    }
    read = client.completions.create(**asked, max_tokens=0)
    on = client.completions.create(**asked, max_tokens=1, temperature=0)
    for short, long in zip(read.choices, on.choices, strict=True):
        odds, more = short.logprobs.token_logprobs, long.logprobs.token_logprobs
        assert odds[0] is None and len(more) == len(odds) + 1
        assert odds[1:] == pytest.approx(more[1:-1], abs=1e-4)
        assert long.text.startswith(short.text)
        tops = [max(each.values()) for each in short.logprobs.top_logprobs[1:]]
        assert all(top >= odd for top, odd in zip(tops, odds[1:], strict=True))
    assert read.usage.completion_tokens == 0
    parts = list(client.completions.create(**asked, max_tokens=3, temperature=0, stream=True))
    first = [
        p.logprobs.token_logprobs for e in parts for p in e.choices if p.index == 0 and p.logprobs
    ]
    assert len(sum(first, [])) == 3 + 3 or parts[-1].choices[0].finish_reason == "stop"


def test_the_token_that_ends_a_response_has_a_log_probability(client):
    asked = {"model": "small", "prompt": [2, 40, 41], "logprobs": 1, "echo": True, "max_tokens": 1}
    many = client.completions.create(**asked, temperature=1.5, n=128, seed=1).choices
    ended = [each for each in many if each.finish_reason == "stop"]
    assert ended and len(ended) < len(many)
    assert all(len(each.logprobs.token_logprobs) == 3 + 1 for each in many)
    assert ended[0].text == client.completions.create(**asked | {"max_tokens": 0}).choices[0].text


def test_prompts_of_every_kind(client):
    kinds = ["What is 4?", ["What is 4?", "What is 8?"], [2, 40, 41], [[2, 40], [2, 41, 42]]]
    for prompt, count in zip(kinds, (1, 2, 1, 2), strict=True):
        made = client.completions.create(model="small", prompt=prompt, max_tokens=2, n=2)
        assert [each.index for each in made.choices] == list(range(2 * count))


def test_refusals(client, served):
    create = client.chat.completions.create
    for error, changed in (
        (openai.NotFoundError, {"model": "other"}),
        (openai.BadRequestError, {"messages": []}),
        (openai.BadRequestError, {"temperature": -1}),
        (openai.BadRequestError, {"n": 0}),
        (openai.BadRequestError, {"extra_body": {"top_k": 10**18}}),
        (openai.BadRequestError, {"max_tokens": 100_000}),
        (openai.BadRequestError, {"logit_bias": {"5": 1}}),
        (openai.BadRequestError, {"messages": [*CHAT, *CHAT]}),
        (openai.BadRequestError, {"messages": CHAT * 400}),
    ):
        with pytest.raises(error) as caught:
            create(**{"model": "small", "messages": CHAT} | changed)
        assert caught.value.body["message"] and caught.value.body["type"]
    for prompt in ([], [[]], [2, 10**9], [-1], "", "why " * 3000, ["a"] * 3000):
        if prompt == "":  # the beginning of a text is a prompt of one token
            client.completions.create(model="small", prompt=prompt, max_tokens=1)
            continue
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="small", prompt=prompt)
    with openai.OpenAI(base_url=f"{served[1]}/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            stranger.models.list()
        assert caught.value.body["type"] == "authentication_error"
    bearer = {"Authorization": f"Bearer {KEY}"}
    for path, body in (
        ("completions", b"\xff"), ("completions", b"[]"), ("chat/completions", b'{"messages": 7}'),
        ("completions", b'{"prompt": "a", "temperature": NaN}'), ("nothing", b"{}"),
    ):  # fmt: skip
        answer = httpx.post(f"{served[1]}/v1/{path}", content=body, headers=bearer)
        assert 400 <= answer.status_code < 500 and answer.json()["error"]["message"], answer.text
    assert httpx.get(f"{served[1]}/v1/completions", headers=bearer).json()["error"]["message"]


def test_sixteen_at_once(client):
    def ask(number: int) -> str:
        asked = {"model": "small", "messages": CHAT, "max_tokens": 30, "temperature": 1}
        chunks = client.chat.completions.create(**asked, seed=number % 4, stream=True)
        return "".join(piece.delta.content or "" for each in chunks for piece in each.choices)

    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(ask, range(16)))
    assert texts[:4] == texts[4:8] == texts[8:12] == texts[12:] and len(set(texts)) == 4


def test_a_client_that_leaves_frees_its_place(client, served):
    asked = {"model": "small", "messages": CHAT, "max_tokens": 450, "temperature": 1}
    extra = {"extra_body": {"ignore_eos": True}}
    stream = client.chat.completions.create(**asked, **extra, stream=True)
    next(iter(stream))
    stream.close()
    assert comes_to_rest(served)
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(**asked, **extra, n=20, timeout=0.2)
    assert comes_to_rest(served)


def test_it_stops_cleanly_and_leaves_nothing_behind(served):
    process, address = served
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    assert children.stdout == ""
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) in (0, -signal.SIGTERM)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")
