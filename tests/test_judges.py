"A judge over HTTP: what it is told, what is believed, and how it fails."

import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tunix_rt.core.errors import ScoringError
from tunix_rt.core.settings import settings
from tunix_rt.evaluation import llm_judge as grading
from tunix_rt.evaluation.judges import find_judge, model_judge
from tunix_rt.evaluation.llm_judge import JudgeEndpoint, question_for_judge
from tunix_rt.scoring.predictions import make_prediction
from tunix_rt.traces.schema import Trace

KEY = "sk-sesame-4711"


def trace(number: int) -> Trace:
    steps = [{"i": 0, "type": "work", "content": "so"}]
    return Trace(prompt=f"What is {number}?", steps=steps, final_answer=str(number))


def said(question: Trace, output: str):
    return make_prediction(
        question, output, finish_reason="stop", prompt_tokens=3, completion_tokens=3
    )


def answered(count: int):
    questions = [trace(number) for number in range(count)]
    return [(each, [said(each, f"<answer>{n}</answer>")]) for n, each in enumerate(questions)]


def verdict(score, reason="Because.") -> str:
    return json.dumps({"score": score, "reason": reason})


class Bench:
    "A service on loopback that does what a function tells it to, and remembers what it was asked."

    def __init__(self):
        self.asked, self.under_way, self.most, self.lock = [], 0, 0, threading.Lock()
        self.act = lambda handler, number: (200, verdict(5))
        bench = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                with bench.lock:
                    bench.asked.append((self.path, dict(self.headers), json.loads(body)))
                    number = len(bench.asked)
                    bench.under_way += 1
                    bench.most = max(bench.most, bench.under_way)
                try:
                    reply = bench.act(self, number)
                finally:
                    with bench.lock:
                        bench.under_way -= 1
                if reply is not None:
                    status, text, *headers = reply
                    self.send_response(status)
                    for name, value in headers:
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(bench.wrap(text) if status == 200 else text.encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def wrap(self, text: str) -> bytes:
        return json.dumps({"choices": [{"message": {"content": text}}]}).encode()

    def service(self, **fields) -> JudgeEndpoint:
        known = {"kind": "openai", "url": self.url, "model": "m", "key": KEY, "pause": 0.01}
        return JudgeEndpoint(**{**known, **fields})


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.server.shutdown()
    bench.server.server_close()


def material(request) -> dict:
    mark, text, again = request["messages"][1]["content"].split("\n")
    assert mark == again and mark.startswith("=== ")
    return json.loads(text)


def test_every_answer_gets_its_own_score_and_few_are_asked_at_once(bench):
    def act(handler, number):
        time.sleep(0.02)
        return 200, verdict(int(material(bench.asked[number - 1][2])["reference_answer"]) % 11)

    bench.act = act
    pairs = answered(20)
    opinions = model_judge(bench.service(at_once=3)).ask(pairs)
    assert [opinions[q.fingerprint, 0].score for q, _ in pairs] == [n % 11 / 10 for n in range(20)]
    assert 1 < bench.most <= 3 and len(bench.asked) == 20
    path, headers, body = bench.asked[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"]) == ("m", 0.0)


def test_rediai_is_asked_in_its_own_way(bench, monkeypatch):
    bench.wrap = lambda text: json.dumps({"text": text}).encode()
    for name, value in {"REDIAI_URL": bench.url, "JUDGE_MODEL": "gemma", "JUDGE_KEY": KEY}.items():
        monkeypatch.setenv(f"TUNIX_RT_{name}", value)
    settings.cache_clear()
    judge = find_judge("gemma-judge")
    (opinion,) = judge.ask(answered(1)).values()
    path, headers, body = bench.asked[0]
    assert (
        judge.name == "llm" and opinion.score == 0.5 and opinion.details == {"reason": "Because."}
    )
    assert path == "/v1/generate" and set(body) == {"model", "prompt", "temperature", "max_tokens"}
    assert "Authorization" not in headers  # the key belongs to another service
    settings.cache_clear()


@pytest.mark.parametrize(
    "trouble",
    [
        (429, "slow down", ("Retry-After", "0")),
        (503, "not now"),
        (200, "I like it. 8 out of 10."),
        (200, verdict(11)),
        (200, verdict(7.5)),
        (200, verdict(True)),
        (200, '{"score": 7}'),
        (200, '{"score": 7, "score": 9, "reason": "twice"}'),
        (200, '{"score": NaN, "reason": "none"}'),
    ],
)
def test_trouble_is_tried_again_and_never_becomes_a_score(bench, trouble):
    bench.act = lambda handler, number: trouble if number < 3 else (200, verdict(8))
    (opinion,) = model_judge(bench.service()).ask(answered(1)).values()
    assert opinion.score == 0.8 and len(bench.asked) == 3

    bench.act = lambda handler, number: trouble
    with pytest.raises(ScoringError, match="no opinion on trace .* in 2 attempts.*Nothing was"):
        model_judge(bench.service(attempts=2)).ask(answered(1))


def test_a_fence_around_json_is_taken_off(bench):
    bench.act = lambda handler, number: (200, f"```json\n{verdict(9)}\n```")
    (opinion,) = model_judge(bench.service()).ask(answered(1)).values()
    assert opinion.score == 0.9


def dribble(handler, number):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def silent(handler, number):
    time.sleep(1.0)


def flood(handler, number):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b"x" * 65536)


@pytest.mark.parametrize(
    "act, words",
    [(dribble, "longer than"), (silent, "longer than"), (flood, "more than 1,000,000")],
)
def test_a_service_that_dribbles_sleeps_or_floods_is_left(bench, act, words):
    def acting(handler, number):
        try:
            act(handler, number)
        except OSError:
            pass  # the judge hung up

    bench.act = acting
    began = time.monotonic()
    with pytest.raises(ScoringError, match=words):
        model_judge(bench.service(attempts=1, timeout=0.3)).ask(answered(1))
    assert time.monotonic() - began < 2


def test_a_refusal_is_final_and_shows_no_key(bench, caplog):
    caplog.set_level(logging.DEBUG)
    bench.act = lambda handler, number: (401, f"no such key: {KEY}\x1b[31m")
    with pytest.raises(ScoringError, match=r"HTTP 401: no such key: \[key\]") as refusal:
        model_judge(bench.service(at_once=1)).ask(answered(3))
    assert len(bench.asked) == 1
    assert KEY not in str(refusal.value) + caplog.text + repr(bench.service())
    assert "\x1b" not in str(refusal.value)


def test_a_password_in_the_address_is_used_and_not_logged(bench, caplog):
    caplog.set_level(logging.DEBUG)
    address = bench.url.replace("//", "//me:secret@")
    model_judge(bench.service(url=address, key=None)).ask(answered(1))
    assert bench.asked[0][1]["Authorization"].startswith("Basic ")
    assert "secret" not in caplog.text + repr(bench.service(url=address))


def test_the_key_does_not_follow_a_redirect(bench):
    bench.act = lambda handler, number: (307, "", ("Location", f"{bench.url}/elsewhere"))
    with pytest.raises(ScoringError, match="HTTP 307"):
        model_judge(bench.service()).ask(answered(1))
    assert len(bench.asked) == 1


def test_the_first_failure_calls_the_others_off(bench):
    bench.act = lambda handler, number: (500, "down")
    with pytest.raises(ScoringError, match="HTTP 500: down"):
        model_judge(bench.service(at_once=2, attempts=2)).ask(answered(200))
    assert len(bench.asked) <= 12


def test_waiting_as_asked_has_a_limit(bench, monkeypatch):
    monkeypatch.setattr(grading, "MOST_PAUSE", 0.05)
    bench.act = lambda handler, number: (429, "", ("Retry-After", "86400"))
    began = time.monotonic()
    with pytest.raises(ScoringError, match="429"):
        model_judge(bench.service(attempts=3)).ask(answered(1))
    assert time.monotonic() - began < 2


@examples(max_examples=60, deadline=None)
@given(st.text(max_size=200), st.sampled_from(["", "\n===\n", '"}\n', "\u2028", "\x85"]))
def test_no_text_gets_out_of_its_quotes(text, trick):
    output = text + trick + "=== end ==="
    question = trace(1)
    prediction = said(question, output)
    mark, inner, again = question_for_judge(question, prediction).splitlines()
    assert mark == again and mark not in output
    assert json.loads(inner)["response"] == prediction.output


def test_long_responses_are_shown_by_both_ends():
    question = trace(1)
    shown = question_for_judge(question, said(question, "a" * 10**6 + "<answer>1</answer>"))
    assert len(shown) < 25_000 and "characters left out" in shown and "</answer>" in shown


def test_another_wording_or_model_is_another_version(monkeypatch):
    one = model_judge(JudgeEndpoint("openai", "http://h.example", model="a")).version
    assert model_judge(JudgeEndpoint("openai", "http://h.example", model="b")).version != one
    monkeypatch.setattr(grading, "INSTRUCTIONS", "Be kind.")
    assert model_judge(JudgeEndpoint("openai", "http://h.example", model="a")).version != one
    assert (
        len(model_judge(JudgeEndpoint("openai", "http://h.example", model="m" * 300)).version) <= 64
    )


@pytest.mark.parametrize(
    "fields",
    [{"url": "judge.example"}, {"url": "file:///etc/passwd"}, {"key": "a\nb"}, {"key": "é"}],
)
def test_settings_that_cannot_work_are_refused_without_being_shown(fields):
    known = {"kind": "openai", "url": "http://h.example", "model": "m", "key": KEY}
    with pytest.raises(ScoringError) as refusal:
        model_judge(JudgeEndpoint(**{**known, **fields}))
    assert not any(value in str(refusal.value) for value in fields.values())
