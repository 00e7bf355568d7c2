"Tasks without one right answer: from a file or a request to a dataset, a judge and a figure."

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from serving import sum_trace

from tunix_rt.core.errors import DatasetError, ScoringError, TraceError
from tunix_rt.data.datasets import build_dataset
from tunix_rt.data.exports import export_file
from tunix_rt.data.importers import ingest
from tunix_rt.evaluation.evaluate import evaluate
from tunix_rt.evaluation.judges import evaluate_with, model_judge, rule_judge
from tunix_rt.evaluation.llm_judge import JudgeEndpoint
from tunix_rt.inference.engine import Completion
from tunix_rt.rewards.check import check_rewards
from tunix_rt.rewards.functions import load_rewards, score_completions
from tunix_rt.rewards.judges import EndpointJudge, rubric_reward
from tunix_rt.scoring.predictions import make_prediction
from tunix_rt.scoring.scorers import SCORERS
from tunix_rt.traces.rubric import NO_REFERENCE
from tunix_rt.traces.schema import Trace, read_traces, write_traces

RUBRIC = [{"criterion": "It names a jar.", "weight": 3}, {"criterion": "It is rude.", "weight": -1}]


def poem(number: int, answer: str = NO_REFERENCE, rubric=RUBRIC) -> dict:
    meta = {"source": "poems", "match": "rubric", "rubric": rubric, "category": "writing"}
    prompt = f"Write {number} lines about a jar."
    return {"prompt": prompt, "steps": [], "final_answer": answer, "meta": meta}


def said(trace: Trace, answer: str, sample: int = 0):
    text = f"<reasoning>so</reasoning><answer>{answer}</answer>"
    return make_prediction(
        trace, text, finish_reason="stop", prompt_tokens=3, completion_tokens=9, sample=sample
    )


@pytest.fixture
def critic():
    "A service that likes jars."

    class Critic(BaseHTTPRequestHandler):
        asked: list[dict] = []

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            material = json.loads(body["messages"][1]["content"].split("\n")[1])
            Critic.asked.append(material)
            jar = "jar" in material["response"]
            text = {"scores": [10 * jar, 0], "reason": "A jar."}
            if "rubric" not in material:
                text = {"score": 10 * (material["reference_answer"] in material["response"])}
                text["reason"] = "It is right."
            self.send_response(200)
            self.end_headers()
            reply = {"choices": [{"message": {"content": json.dumps(text)}}]}
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Critic)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    Critic.endpoint = JudgeEndpoint(
        "openai", f"http://127.0.0.1:{server.server_port}/v1", model="critic"
    )
    yield Critic
    server.shutdown()
    server.server_close()


def test_a_file_of_poems_becomes_a_dataset_and_comes_back(tmp_path: Path):
    traces = [Trace.model_validate(poem(n)) for n in (2, 3)]
    traces.append(Trace.model_validate(poem(4, "A jar of clay,\nput away.", "It rhymes.")))
    write_traces(tmp_path / "poems.jsonl", traces)
    taken = ingest(tmp_path / "poems.jsonl", source="poems", into=tmp_path / "taken.jsonl")
    assert taken.accepted == 3
    dataset = build_dataset(
        read_traces(tmp_path / "taken.jsonl"), name="poems", version="v1", home=tmp_path
    )
    assert [trace.meta["rubric"] for trace in dataset] == [t.meta["rubric"] for t in traces]
    export_file(list(dataset), tmp_path / "out.jsonl", format="trace")
    ingest(tmp_path / "out.jsonl", source="poems", into=tmp_path / "back.jsonl")
    back = list(read_traces(tmp_path / "back.jsonl"))
    assert [t.fingerprint for t in back] == [t.fingerprint for t in dataset]
    assert [(t.meta["match"], t.meta["rubric"]) for t in back] == [
        (t.meta["match"], t.meta["rubric"]) for t in traces
    ]
    for format in ("messages", "training_example", "tunix_sft"):
        with pytest.raises((TraceError, DatasetError), match="nobody has written an answer to it"):
            export_file(list(dataset)[:1], tmp_path / "no.jsonl", format=format)


@pytest.mark.parametrize(
    ("rubric", "reason"),
    [
        (None, "the rubric is missing"),
        ("", "no text"),
        ([{"weight": 1}], "criterion 1"),
        (7, "missing"),
    ],
)
def test_a_poem_without_a_readable_rubric_is_refused(tmp_path: Path, rubric, reason):
    (tmp_path / "poems.jsonl").write_text(json.dumps(poem(2, rubric=rubric)) + "\n")
    with pytest.raises(DatasetError, match=reason):
        ingest(tmp_path / "poems.jsonl", source="poems", into=tmp_path / "taken.jsonl")


def test_poems_over_http(api):
    assert api.post("/api/traces", json=poem(2)).status_code == 201
    many = [poem(3), poem(4, rubric="It rhymes.")]
    assert api.post("/api/traces/batch", json=many).status_code == 201
    sent = api.post(
        "/api/datasets/upload", params={"source_name": "sent"}, content=json.dumps(poem(5))
    )
    assert sent.status_code == 201 and sent.json()["ingested_count"] == 1
    for body in (poem(6, rubric=""), poem(6) | {"meta": {}}):
        refusal = api.post("/api/traces", json=body)
        assert refusal.status_code == 422 and "rubric" in refusal.text
    asked = {"dataset_name": "poems", "dataset_version": "v1", "filters": {"category": "writing"}}
    built = api.post("/api/datasets/build", json=asked)
    assert built.status_code == 201 and built.json()["trace_count"] == 4
    lines = api.get("/api/datasets/poems-v1/export.jsonl?format=trace").text.splitlines()
    assert {json.loads(line)["metadata"]["match"] for line in lines} == {"rubric"}
    for path in ("/traces", "/datasets/poems-v1", "/datasets"):
        assert api.get(path).status_code == 200


def test_poems_are_judged_and_sums_are_compared(critic):
    sums, poems = Trace.model_validate(sum_trace(1)), Trace.model_validate(poem(2))
    answers = [said(sums, "2"), said(poems, "A jar."), said(sums, "3", 1), said(poems, "A cup.", 1)]
    evaluation = evaluate(answers, [sums, poems])
    assert evaluation.scores["answer_correctness"].count == 1 == evaluation.not_compared
    assert evaluation.pass_at[2].count == 1 == evaluation.majority_at[2].count
    ruled, grades = evaluate_with(rule_judge(SCORERS["answer_correctness"]), answers, [sums, poems])
    assert ruled.scores == evaluation.scores and len(grades) == 2
    judged, grades = evaluate_with(model_judge(critic.endpoint), answers, [sums, poems])
    assert len(grades) == 4 and judged.scores["llm"].count == 2
    assert judged.scores["llm"].mean == 0.5
    tasks = [asked for asked in critic.asked if "rubric" in asked]
    assert tasks[0]["rubric"] == [each["criterion"] for each in RUBRIC]
    assert "weight" not in json.dumps(tasks) and NO_REFERENCE not in json.dumps(tasks)


def test_a_rubric_pays_beside_a_key(critic, tmp_path: Path):
    sums, poems = Trace.model_validate(sum_trace(1)), Trace.model_validate(poem(2))
    texts = [said(sums, "2").output, said(sums, "3").output]
    texts += [said(poems, "A jar.").output, said(poems, "A cup.").output]
    completions = [Completion(0, 0, [1], text, "stop", 1, 1, 2) for text in texts]
    rewards = load_rewards(["correct", rubric_reward(EndpointJudge(critic.endpoint))])
    batch = score_completions(rewards, [sums, sums, poems, poems], completions)
    assert np.array_equal(batch.total, [1, 0, 1, 0])
    assert np.isnan(batch.values).tolist() == [[False, True]] * 2 + [[True, False]] * 2


def test_a_rubric_reward_is_tried_on_written_answers(critic):
    written = [Trace.model_validate(poem(n, f"A jar, {n} times.")) for n in range(2, 8)]
    judge = rubric_reward(EndpointJudge(critic.endpoint))
    check = check_rewards(judge, written)
    assert not check.ok  # it likes every jar, whichever poem was asked for
    with pytest.raises(ScoringError, match="can't tell right from wrong"):
        check.require()
