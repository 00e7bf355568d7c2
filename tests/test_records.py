"Evaluations, the board, baselines and the registry, on both databases, from real predictions."

import errno
import io
import json
import os
import shutil
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from uuid import UUID, uuid4

import pytest
from flax import nnx
from sqlalchemy import event, func, insert, select

from tunix_rt.core.errors import (
    DatasetError,
    MissingError,
    ModelError,
    PathError,
    RunError,
    ScoringError,
)
from tunix_rt.core.settings import settings
from tunix_rt.data.datasets import build_dataset
from tunix_rt.evaluation import llm_judge as grading
from tunix_rt.evaluation.evaluate import evaluate, write_evaluation
from tunix_rt.models.config import preset
from tunix_rt.models.gemma import Gemma
from tunix_rt.models.tokenizer import train_tokenizer
from tunix_rt.models.weights import load_weights, save_model
from tunix_rt.registry.content_store import FileDigest, read_content, store_content, zip_folder
from tunix_rt.registry.model_refs import pin_model
from tunix_rt.registry.models import (
    NameTaken,
    create_registered_model,
    find_model_named,
    find_version,
    get_model,
    list_models,
    list_versions,
    set_alias,
    version_folder,
)
from tunix_rt.registry.promotion import promote, verify_version, zip_version
from tunix_rt.runs.folder import read_run, start_run
from tunix_rt.scoring.predictions import make_prediction, write_predictions
from tunix_rt.store.tables import EvaluationItem, EvaluationRow, ModelVersion, RunRow, now
from tunix_rt.traces.schema import Trace
from tunix_rt.tracking.baselines import get_baseline, known_metrics, list_baselines, set_baseline
from tunix_rt.tracking.evaluations import (
    evaluate_parameters,
    evaluate_run,
    get_evaluation,
    latest_evaluation,
    list_items,
    record_evaluation,
)
from tunix_rt.tracking.leaderboard import leaderboard
from tunix_rt.tracking.regression import check_regression, gate

QUESTIONS = 40


def question(number: int) -> Trace:
    steps = [{"i": 0, "type": "work", "content": f"{number} + {number} = {2 * number}"}]
    meta = {"category": "even" if number % 2 == 0 else "odd"}
    fields = {"prompt": f"What is {number} + {number}?", "final_answer": str(2 * number)}
    return Trace(steps=steps, meta=meta, **fields)


@dataclass
class Bench:
    "A root of its own with an evaluation set, where runs are made by the library's own functions."

    store: object
    root: Path

    def __post_init__(self):
        questions = map(question, range(QUESTIONS))
        self.exam = build_dataset(questions, name="exam", version="v1")

    def start(self, pipeline, parameters=None):
        home = self.root / "outputs" / "runs"
        return start_run(pipeline, home / f"{pipeline}-{uuid4().hex[:8]}", parameters or {})

    def register(self, run, **fields) -> UUID:
        known = {
            "id": UUID(run.run_id),
            "pipeline": run.pipeline,
            "status": run.status,
            "folder": str(run.folder.relative_to(self.root)),
            "parameters": run.parameters,
            "metrics": run.results,
        }
        row = RunRow(**{**known, **fields})
        with self.store.writing() as session:
            session.add(row)
        return row.id

    def predictions(self, right, samples=1):
        return [
            make_prediction(
                trace,
                f"<reasoning>{number} + {number} = {2 * number}</reasoning>\n<answer>"
                f"{trace.final_answer if number < right else 'no idea'}</answer>",
                finish_reason="stop",
                prompt_tokens=9,
                completion_tokens=20,
                sample=sample,
            )
            for number, trace in enumerate(self.exam)
            for sample in range(samples)
        ]

    def asked(self, right, *, parameters=None, results=None, predictions=None, **fields) -> UUID:
        run = self.start("evaluate", {"model": "tiny", "name": f"m{right}", **(parameters or {})})
        write_predictions(run.predictions, predictions or self.predictions(right))
        run.record(dataset={"key": self.exam.key, "sha256": self.exam.fingerprint})
        run.finish(results)
        return self.register(run, **fields)

    def evaluated(self, right, **options) -> UUID:
        id = self.asked(right, **options)
        assert record_evaluation(self.store, id).score == 100 * right / QUESTIONS
        return id


@pytest.fixture
def bench(store, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNIX_RT_ROOT", str(tmp_path))
    settings.cache_clear()
    yield Bench(store, tmp_path)
    settings.cache_clear()


def count(store, table) -> int:
    with store.reading() as session:
        return session.scalar(select(func.count()).select_from(table))


# Evaluations


def test_an_evaluation_holds_what_the_predictions_say_and_not_what_a_file_claims(bench):
    id = bench.asked(30, model_id="adder", dataset_key="sums-v1")
    boast = evaluate(bench.predictions(QUESTIONS), bench.exam, name="boast")
    with bench.store.reading() as session:
        folder = bench.root / session.get(RunRow, id).folder
    write_evaluation(folder / "evaluation.json", boast)

    found = record_evaluation(bench.store, id)
    assert (found.score, found.verdict, found.item_count) == (75.0, "pass", QUESTIONS)
    assert 50 < found.low < 75 < found.high < 90
    assert (found.model_id, found.dataset_key) == ("adder", "sums-v1")
    assert (found.evaluation_set, found.evaluation_fingerprint) == (
        "exam-v1",
        bench.exam.fingerprint,
    )
    assert (found.judge_name, found.judge_version) == ("answer_correctness", "2")
    assert found.categories["even"]["answer_correctness"]["mean"] == 0.75
    assert found.metrics["format"] == found.metrics["step_validity"] == 1.0
    detailed = {each["name"]: each for each in found.detailed_metrics}
    assert detailed["answer_correctness"]["score"] == 0.75
    assert detailed["truncated"]["details"]["higher_is_better"] is False
    assert found == get_evaluation(bench.store, found.id) == latest_evaluation(bench.store, id)

    items = list_items(bench.store, found.id, limit=QUESTIONS).items
    assert [item.score for item in items] == [1.0] * 30 + [0.0] * 10
    assert items[0].details["scores"]["format"] == 1.0
    assert list_items(bench.store, found.id, limit=7, offset=35).next_offset is None


def test_several_samples_and_a_limit(bench):
    few = [p for p in bench.predictions(5, samples=2) if p.expected in ("0", "2", "4", "12")]
    with pytest.raises(ScoringError, match="fewer predictions"):
        record_evaluation(bench.store, bench.asked(5, predictions=few))
    few = [p for p in bench.predictions(5, samples=2) if int(p.expected) < 16]
    found = record_evaluation(bench.store, bench.asked(5, parameters={"limit": 8}, predictions=few))
    assert (found.score, found.item_count, found.details["prompts"]) == (62.5, 16, 8)
    assert found.metrics["pass@2"] == 0.625 and found.verdict == "uncertain"


def test_what_cannot_be_evaluated_is_refused_and_leaves_nothing(bench):
    store, ready = bench.store, bench.asked(9)
    training = bench.start("train")
    training.finish()
    silent = bench.register(training)
    working = bench.register(bench.start("evaluate"))
    rehearsed = bench.register(bench.start("train"), mode="dry-run", status="completed")
    stray = bench.register(bench.start("train"), folder="/etc", status="completed")
    cases = [
        (MissingError, uuid4(), "no run"),
        (RunError, rehearsed, "dry run"),
        (RunError, working, "is running"),
        (RunError, silent, "tunix-rt evaluate -p model=outputs/runs/train-"),
        (PathError, stray, "outside the folder of runs"),
    ]
    for error, run_id, words in cases:
        with pytest.raises(error, match=words):
            evaluate_run(store, run_id)
    with pytest.raises(ScoringError, match="no judge 'oracle'; choose from answer_correctness"):
        evaluate_run(store, ready, judge="oracle")
    with pytest.raises(MissingError, match="has not been evaluated"):
        latest_evaluation(store, ready)
    assert record_evaluation(store, silent) is None
    assert count(store, EvaluationRow) == count(store, EvaluationItem) == 0

    shutil.rmtree(bench.exam.folder)
    with pytest.raises(DatasetError, match="no dataset 'exam-v1'"):
        evaluate_run(store, ready)
    build_dataset(map(question, range(3)), name="exam", version="v1")
    with pytest.raises(RunError, match="Bring that set here"):
        evaluate_run(store, ready)


def test_a_trained_run_is_judged_by_the_run_that_asked_its_model(bench):
    training = bench.start("train")
    training.record(dataset={"key": "sums-v1", "sha256": "5" * 64})
    training.finish()
    training.model.mkdir()
    trained = bench.register(training, model_id="adder", dataset_key="sums-v1")
    asking = evaluate_parameters(bench.store, trained, "exam-v1")
    assert asking["model"] == f"outputs/runs/{training.folder.name}" and asking["name"] == "adder"

    fresh = {**asking, "untrained": True}
    record_evaluation(bench.store, bench.asked(3, parameters=fresh, parent_run_id=trained))
    with pytest.raises(MissingError):
        latest_evaluation(bench.store, trained)

    asker = bench.asked(30, parameters=asking, parent_run_id=trained)
    found = evaluate_run(bench.store, trained)
    assert (found.run_id, found.predictions_run_id, found.score) == (trained, asker, 75.0)
    assert found.details["overlap"] == "not checked: sums-v1 is not here"
    record_evaluation(bench.store, asker)
    again = latest_evaluation(bench.store, trained)
    assert again.id != found.id and again.dataset_key == "sums-v1"
    ranked = [row.evaluation.run_id for row in leaderboard(bench.store).rows]
    assert trained in ranked and asker not in ranked  # the model stands there once


def test_an_examination_that_is_gone_does_not_hide_the_others(bench):
    training = bench.start("train")
    training.finish()
    training.model.mkdir()
    trained = bench.register(training, model_id="adder")
    asking = evaluate_parameters(bench.store, trained, "exam-v1")
    kept, lost = (bench.asked(n, parameters=asking, parent_run_id=trained) for n in (30, 10))
    shutil.rmtree(folder_of(bench, lost))
    found = evaluate_run(bench.store, trained)
    assert (found.predictions_run_id, found.score) == (kept, 75.0)


def test_a_model_that_learnt_the_exam_is_not_scored(bench):
    training = bench.start("train")
    training.record(dataset={"key": bench.exam.key, "sha256": bench.exam.fingerprint})
    training.finish()
    bench.register(training)
    with pytest.raises(DatasetError, match="would measure memory"):
        evaluate_run(bench.store, bench.asked(9, parameters={"model": str(training.folder)}))


def test_what_a_version_had_learnt_is_not_forgotten(bench, trained):
    store, first = bench.store, trained("first")
    exam = {"key": bench.exam.key, "sha256": bench.exam.fingerprint}
    read_run(folder_of(bench, first)).record(dataset=exam)
    version = promote(store, "adder", first)
    start, pinned = pin_model("adder@v1", store)
    assert pinned["model_version"]["datasets"] == ["exam-v1"]
    second = trained("second", parameters={"model": start})
    read_run(folder_of(bench, second)).record(**pinned)
    assert promote(store, "adder", second).parent_version_id == version.id
    _, again = pin_model("adder@v2", store)
    assert again["model_version"]["datasets"] == ["sums-v1", "exam-v1"]
    asking = evaluate_parameters(store, second, "exam-v1")
    with pytest.raises(DatasetError, match="would measure memory"):
        evaluate_run(store, bench.asked(9, parameters=asking, parent_run_id=second))


class Opinionated(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        knows = "no idea" not in asked["messages"][1]["content"]
        verdict = json.dumps({"score": 10 if knows else 3, "reason": "I say so."})
        self.send_response(500 if asked["model"] == "broken" else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": verdict}}]}).encode())

    def log_message(self, *_):
        pass


def test_a_model_judges_a_run_or_nothing_is_kept(bench, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Opinionated)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(grading, "MOST_PAUSE", 0.01)
    monkeypatch.setenv("TUNIX_RT_JUDGE_URL", f"http://127.0.0.1:{server.server_port}")
    id = bench.evaluated(30)
    for model in ("broken", "kind"):
        monkeypatch.setenv("TUNIX_RT_JUDGE_MODEL", model)
        settings.cache_clear()
        if model == "broken":
            with pytest.raises(ScoringError, match="HTTP 500"):
                evaluate_run(bench.store, id, judge="llm")
            assert count(bench.store, EvaluationRow) == 1
    found = evaluate_run(bench.store, id, judge="gemma-judge")
    server.shutdown()
    server.server_close()
    assert (found.judge_name, round(found.score, 6)) == ("llm", 82.5)
    assert found.metrics["answer_correctness"] == 0.75 and "kind" in found.judge_version
    assert list_items(bench.store, found.id).items[39].details["reason"] == "I say so."
    assert latest_evaluation(bench.store, id, judge="answer_correctness").score == 75.0
    assert leaderboard(bench.store, judge="gemma-judge").rows[0].evaluation.id == found.id
    assert leaderboard(bench.store, judge="answer_correctness").rows[0].evaluation.score == 75.0


def poem(number: int) -> Trace:
    meta = {"match": "rubric", "rubric": "It rhymes.", "category": "writing"}
    prompt = f"Write {number} lines."
    return Trace(prompt=prompt, steps=[], final_answer="(judged by its rubric)", meta=meta)


def test_questions_with_a_rubric_are_counted_and_never_scored_as_text(bench):
    poems = [poem(number) for number in range(2, 5)]
    bench.exam = build_dataset([*map(question, range(5)), *poems], name="mixed", version="v1")
    id = bench.asked(QUESTIONS)
    found = record_evaluation(bench.store, id)
    assert (found.score, found.item_count, found.details["not_judged"]) == (100, 8, 3)
    page = list_items(bench.store, found.id, limit=3)
    rest = list_items(bench.store, found.id, limit=3, offset=page.next_offset)
    items = [*page.items, *rest.items]
    assert rest.next_offset is None and len({item.fingerprint for item in items}) == 5
    assert {item.score for item in items} == {1.0}

    bench.exam = build_dataset(poems, name="poems", version="v1")
    alone = bench.asked(QUESTIONS)
    with pytest.raises(ScoringError, match="none of 3 questions of poems-v1 .* the judge llm"):
        record_evaluation(bench.store, alone)
    assert [row.evaluation.run_id for row in leaderboard(bench.store).rows] == [id]


# The board


def test_the_board_ranks_runs_once_and_tells_luck_from_skill(bench):
    store = bench.store
    runs = {right: bench.evaluated(right, dataset_key="d", model_id="m") for right in (40, 39, 20)}
    record_evaluation(store, runs[20])
    other = bench.evaluated(36, model_id="other")
    board = leaderboard(store)
    assert [row.evaluation.score for row in board.rows] == [100, 97.5, 90, 50]
    assert [row.standing for row in board.rows] == ["best", "level", "level", "behind"]
    last = board.rows[-1]
    assert last.best_run_id == runs[40] and last.difference.count == QUESTIONS
    assert last.difference.high < 0 and last.difference.p_value < 1e-4
    assert (last.difference.better, last.difference.worse) == (0, 20)

    assert [r.evaluation.run_id for r in leaderboard(store, model_id="other").rows] == [other]
    assert len(leaderboard(store, dataset_key="d").rows) == 3
    assert leaderboard(store, model_id="other").rows[0].standing == "best"
    assert leaderboard(store, evaluation_set="none").rows == []
    paged, after = [], None
    for _ in range(4):
        page = leaderboard(store, limit=1, after=after)
        paged += page.rows
        after = page.next_after
    assert after is None
    assert [r.evaluation.id for r in paged] == [r.evaluation.id for r in board.rows]
    second = leaderboard(store, limit=2, offset=2)
    assert [row.place for row in second.rows] == [3, 4] and second.next_offset is None


def test_a_board_of_ten_thousand_runs_takes_a_few_queries(bench):
    real = [get_evaluation(bench.store, latest_evaluation(bench.store, bench.evaluated(n)).id)
            for n in (10, 25, 33, 38)]  # fmt: skip
    runs, rows, items = [], [], []
    for number in range(10_000):
        seen, id, run = real[number % 4], uuid4(), uuid4()
        runs.append({"id": run, "pipeline": "evaluate", "status": "completed"})
        rows.append(
            {
                **{c: getattr(seen, c) for c in ("score", "low", "high", "verdict")},
                **{c: getattr(seen, c) for c in ("judge_name", "judge_version")},
                **{c: getattr(seen, c) for c in ("evaluation_set", "evaluation_fingerprint")},
                "id": id,
                "run_id": run,
                "evaluated_at": now(),
            }
        )
    with bench.store.writing() as session:
        session.execute(insert(RunRow), runs)
        session.execute(insert(EvaluationRow), rows)
    first = leaderboard(bench.store, limit=100, evaluation_set="exam-v1", differences=False)
    questions = [trace.fingerprint for trace in bench.exam]
    for row in first.rows:
        for position, fingerprint in enumerate(questions):
            known = {"evaluation_id": row.evaluation.id, "position": position}
            items.append({**known, "fingerprint": fingerprint, "score": float(position < 38)})
    real_ids = {each.id for each in real}
    with bench.store.writing() as session:
        session.execute(
            insert(EvaluationItem), [i for i in items if i["evaluation_id"] not in real_ids]
        )
    said = []
    event.listen(bench.store.engine, "before_cursor_execute", lambda *a: said.append(a[2]))
    began = time.monotonic()
    board = leaderboard(bench.store, limit=100, evaluation_set="exam-v1")
    deep = leaderboard(bench.store, limit=100, offset=9_000)
    took = time.monotonic() - began
    assert [row.standing for row in board.rows].count("level") == 99
    assert deep.rows[0].place == 9001 and deep.rows[0].evaluation.score == 25.0
    assert len([s for s in said if s.startswith("SELECT")]) == 6 and took < 10


# Baselines and gates


def test_a_baseline_is_moved_and_never_doubled(bench):
    runs = [bench.evaluated(right) for right in (20, 30)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: set_baseline(bench.store, "main", runs[n % 2]), range(8)))
    assert len({each.id for each in found}) == 1
    (only,) = list_baselines(bench.store).baselines
    assert only == get_baseline(bench.store, "main") and only.value in (50.0, 75.0)
    assert only.lower_is_better is None
    for name in ("", " ", "x" * 257, "a\0b", "\ud800"):
        with pytest.raises(RunError, match="1 to 256"):
            set_baseline(bench.store, name, runs[0])


def test_both_databases_list_in_the_same_order(bench):
    run = bench.evaluated(30)
    for name in ("beta", "Zeta", "_x", "alpha"):
        set_baseline(bench.store, name, run)
    listed = [each.name for each in list_baselines(bench.store).baselines]
    assert listed == ["Zeta", "_x", "alpha", "beta"]


def test_a_check_tells_tolerance_from_significance(bench):
    store = bench.store
    main, same, nearly, poor = (bench.evaluated(right) for right in (30, 30, 28, 12))
    set_baseline(store, "main", main)
    check = check_regression(store, nearly, "main")
    assert (check.delta, round(check.delta_percent, 6), check.verdict) == (
        -5,
        -6.666667,
        "uncertain",
    )
    assert check.details["significant"] is False and check.details["count"] == QUESTIONS
    assert check_regression(store, nearly, "main", tolerance=5).verdict == "pass"
    assert check_regression(store, same, "main").verdict == "pass"
    bad = check_regression(store, poor, "main", tolerance=5)
    assert bad.verdict == "fail" and bad.details["high"] < 0 and bad.details["worse"] == 18
    codes = [gate(store, run, "main")[0] for run in (same, nearly, poor)]
    assert codes == [0, 0, 1] and gate(store, nearly, "main", strict=True)[0] == 1
    assert gate(store, poor, "main")[1].startswith("fail: score is 30, and main holds it to 75")


def test_the_direction_is_the_metrics_own_unless_it_is_given(bench):
    store = bench.store
    cut = [p.model_copy(update={"finish_reason": "length"}) for p in bench.predictions(30)]
    whole = bench.evaluated(30, results={"loss": 0.2, "steps": 7})
    torn = bench.evaluated(30, predictions=cut, results={"loss": 0.4, "steps": 9})
    assert known_metrics(store, torn)["truncated"] == 1.0
    set_baseline(store, "truncated", whole, "truncated")
    check = check_regression(store, torn, "truncated", tolerance=0.1)
    assert (check.delta, check.delta_percent, check.verdict) == (1.0, None, "fail")
    assert check.details["better_when"] == "lower" and check.details["significant"] is True
    set_baseline(store, "loss", whole, "loss")
    assert check_regression(store, torn, "loss").verdict == "fail"
    assert check_regression(store, torn, "loss").details["significant"] is None
    assert set_baseline(store, "odd", whole, "loss", lower_is_better=False).evaluation_id is None
    assert check_regression(store, torn, "odd").verdict == "pass"
    with pytest.raises(RunError, match="better when it is low or high"):
        set_baseline(store, "steps", whole, "steps")
    with pytest.raises(RunError, match="no metric 'taste'. It has: answer_correctness, "):
        set_baseline(store, "taste", whole, "taste")
    with pytest.raises(MissingError, match="no baseline"):
        check_regression(store, whole, "nobody's")
    with pytest.raises(RunError, match="has no metric 'score'.*has not been evaluated"):
        set_baseline(store, "x", bench.asked(3, results={"loss": 1.0}))


def test_another_measure_is_not_compared(bench):
    store, main, other = bench.store, bench.evaluated(30), bench.evaluated(28)
    set_baseline(store, "main", main)
    with store.writing() as session:
        row = session.scalars(select(EvaluationRow).where(EvaluationRow.run_id == other)).one()
        row.judge_version = "1"
    with pytest.raises(RunError, match="may be the judge's"):
        check_regression(store, other, "main")
    with store.writing() as session:
        session.get(EvaluationRow, row.id).evaluation_fingerprint = "0" * 64
    with pytest.raises(RunError, match="has not been evaluated by answer_correctness on exam-v1"):
        check_regression(store, other, "main")


# The registry


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    "A real model in Hugging Face layout."
    folder = tmp_path_factory.mktemp("model") / "model"
    tokenizer = train_tokenizer(["user\nWhat is 6 * 7?\nmodel\n42"] * 4)
    shape = preset("tiny").resized(vocabulary=len(tokenizer))
    save_model(folder, Gemma(shape, nnx.Rngs(0)), tokenizer)
    return folder


@pytest.fixture
def trained(bench, small_model):
    "Makes trained runs, each with other weights in effect: a file of its own beside them."

    def make(mark="", parameters=None, **fields) -> UUID:
        run = bench.start("train", parameters)
        shutil.copytree(small_model, run.model)
        (run.model / "note.txt").write_text(mark)
        run.record(dataset={"key": "sums-v1", "sha256": "5" * 64})
        run.finish({"loss": 0.25})
        return bench.register(run, **fields)

    return make


def folder_of(bench, run_id) -> Path:
    with bench.store.reading() as session:
        return bench.root / session.get(RunRow, run_id).folder


def test_a_run_becomes_a_version_that_loads_and_proves_itself(bench, trained):
    store = bench.store
    family = create_registered_model(store, "adder", description="Adds.", task_type="reasoning")
    run = trained("one")
    version = promote(store, family.id, run, description="the first")
    assert (version.version, version.status, version.model_name) == ("v1", "ready", "adder")
    assert version.metrics == {"loss": 0.25} and version.provenance["dataset"]["key"] == "sums-v1"
    assert version.config["model"]["model_type"].startswith("gemma")
    assert version.storage_uri == f"outputs/models/{version.sha256}"
    assert read_content(version_folder(version)).sha256 == version.sha256
    assert verify_version(store, version.id).ok
    assert get_model(store, family.id).latest_version == version

    download = zip_version(store, version.id)
    zipped = b"".join(download.chunks)
    assert zipped == b"".join(zip_version(store, version.id).chunks)
    zipfile.ZipFile(io.BytesIO(zipped)).extractall(bench.root / "out")
    assert download.filename == "adder-v1.zip"
    load_weights(bench.root / "out" / "adder-v1")

    folder = version_folder(version)
    (folder / "note.txt").write_text("two")
    (folder / "more.txt").symlink_to("/etc/passwd")
    found = verify_version(store, version.id)
    assert (found.ok, found.changed, found.added) == (False, ["note.txt"], ["more.txt"])
    with pytest.raises(ModelError, match="was damaged since"):
        promote(store, family.id, run)
    shutil.rmtree(folder)
    assert "config.json" in verify_version(store, version.id).missing
    with pytest.raises(ModelError, match="is missing"):
        zip_version(store, version.id)


def test_labels_aliases_and_descent(bench, trained):
    store, family = bench.store, create_registered_model(bench.store, "adder")
    one, two = trained("one"), trained("two")
    first = promote(store, family.id, one)
    assert promote(store, family.id, one) == first
    spring = promote(store, family.id, one, version_label="spring")
    assert spring.sha256 == first.sha256 and spring.id != first.id
    assert promote(store, family.id, one, version_label="spring") == spring
    with pytest.raises(ModelError, match="never changes what it means"):
        promote(store, family.id, two, version_label="spring")
    for label in ("", ".hidden", "a/b", "-x", "x" * 65, "v1\n", "é"):
        with pytest.raises(ModelError, match="cannot label"):
            promote(store, family.id, two, version_label=label)
    with pytest.raises(NameTaken):
        set_alias(store, family.id, "spring", first.id)
    assert set_alias(store, family.id, "v2", first.id).aliases == {"v2": "v1"}
    second = promote(store, family.id, two)
    assert second.version == "v3"  # v2 is an alias
    set_alias(store, family.id, "champion", second.id)
    assert find_version(store, "adder", "champion").id == second.id
    with pytest.raises(MissingError):
        set_alias(store, create_registered_model(store, "other").id, "champion", second.id)

    from_version = trained("three", {"model": str(version_folder(second))})
    from_run = trained("four", {"model": str(folder_of(bench, one) / "model")})
    assert promote(store, family.id, from_version).parent_version_id == second.id
    assert promote(store, family.id, from_run).parent_version_id in (first.id, spring.id)
    assert second.parent_version_id is None
    page = list_versions(store, family.id, limit=2)
    assert [each.version for each in page.versions] == ["v5", "v4"] and page.next_offset == 2
    models = list_models(store)
    assert [each.name for each in models.models] == ["adder", "other"]
    assert models.models[0].latest_version.version == "v5" and models.next_offset is None


def test_many_promote_at_once(bench, trained):
    store, family = bench.store, create_registered_model(bench.store, "adder")
    same, others = trained("same"), [trained(str(number)) for number in range(3)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda run: promote(store, family.id, run), [same] * 3 + others))
    assert len({version.id for version in found[:3]}) == 1
    assert sorted({version.version for version in found}) == ["v1", "v2", "v3", "v4"]
    kept = [path.name for path in (bench.root / "outputs" / "models").iterdir()]
    assert sorted(kept) == sorted({version.sha256 for version in found})

    def found_family(_):
        try:
            return create_registered_model(store, "fought-over").id
        except NameTaken:
            return None

    with ThreadPoolExecutor(4) as pool:
        assert len([id for id in pool.map(found_family, range(4)) if id]) == 1


def test_a_gate_guards_the_registry(bench, trained, small_model):
    store, family = bench.store, create_registered_model(bench.store, "adder")

    def with_answers(right):
        run = trained(str(right))
        asking = evaluate_parameters(store, run, "exam-v1")
        bench.evaluated(right, parameters=asking, parent_run_id=run)
        return run

    main, poor, untested = with_answers(30), with_answers(10), trained("untested")
    set_baseline(store, "main", main)
    with pytest.raises(RunError, match="was not promoted. fail: score is 25"):
        promote(store, family.id, poor, gate="main")
    with pytest.raises(RunError, match="evaluate it there first"):
        promote(store, family.id, untested, gate="main")
    assert count(store, ModelVersion) == 0 and not (bench.root / "outputs" / "models").exists()
    version = promote(store, family.id, main, gate="main")
    assert version.metrics["score"] == 75.0
    assert version.provenance["gate"]["verdict"] == "pass"
    (told,) = version.provenance["evaluations"]
    assert (told["evaluation_set"], told["score"], told["verdict"]) == ("exam-v1", 75.0, "pass")


def test_a_promotion_that_is_refused_founds_nothing(bench, trained):
    store, run, poor = bench.store, trained("fine"), bench.evaluated(3)
    set_baseline(store, "main", bench.evaluated(30))
    cases = [
        ("adder", {"gate": "main"}, RunError, "evaluate it there first"),
        ("adder", {"gate": "nobody"}, MissingError, "no baseline"),
        ("adder", {"aliases": ["champion", "not so"]}, ModelError, "cannot be an alias"),
        ("adder", {"aliases": ["champion", "v1"]}, NameTaken, "an alias would hide it"),
        ("a b", {}, ModelError, "cannot name a model"),
    ]
    for name, given, error, words in cases:
        with pytest.raises(error, match=words):
            promote(store, name, run, **given)
    with pytest.raises(RunError, match="left no model"):
        promote(store, "adder", poor)
    assert list_models(store).models == [] and count(store, ModelVersion) == 0
    version = promote(store, "adder", run, aliases=["stable", "champion"])
    found = find_model_named(store, "adder")
    assert found.aliases == {"champion": "v1", "stable": "v1"} and found.id == version.model_id
    again = trained("again")
    assert promote(store, "adder", again, aliases=["champion"]).version == "v2"
    assert find_model_named(store, "adder").aliases == {"champion": "v2", "stable": "v1"}


def test_what_is_not_promoted_leaves_nothing(bench, trained, monkeypatch):
    store, family = bench.store, create_registered_model(bench.store, "adder")
    linked, pickled, empty = trained("linked"), trained("pickled"), trained("empty")
    (folder_of(bench, linked) / "model" / "link").symlink_to("/etc/passwd")
    for weights in (folder_of(bench, pickled) / "model").glob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    shutil.rmtree(folder_of(bench, empty) / "model")
    cases = [
        (PathError, linked, "is a link"),
        (ModelError, pickled, "as .safetensors"),
        (RunError, empty, "left no model"),
        (RunError, trained("late", status="failed"), "is failed"),
        (RunError, trained("dry", mode="dry-run"), "dry run"),
        (PathError, trained("away", folder="/tmp"), "outside the folder of runs"),
        (MissingError, uuid4(), "no run"),
    ]
    for error, run, words in cases:
        with pytest.raises(error, match=words):
            promote(store, family.id, run)
    with pytest.raises(MissingError, match="no model"):
        promote(store, uuid4(), empty)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    fine = trained("fine")
    with monkeypatch.context() as patch, pytest.raises(ModelError, match="make room"):
        patch.setattr(os, "fsync", full)
        promote(store, family.id, fine)
    home = bench.root / "outputs" / "models"
    assert list(home.iterdir()) == [] and count(store, ModelVersion) == 0
    assert promote(store, family.id, fine).version == "v1"


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "a/b", "x" * 257, "é", "a\n"])
def test_names_that_mean_something_else_are_refused(bench, name):
    with pytest.raises(ModelError, match="cannot name a model"):
        create_registered_model(bench.store, name)
    with pytest.raises(ModelError, match="NUL"):
        create_registered_model(bench.store, "fine", description="a\0b")


# Content, which no database sees


def test_a_large_zip_takes_little_memory(tmp_path):
    (tmp_path / "big").mkdir()
    with (tmp_path / "big" / "weights").open("wb") as file:
        file.truncate(96 * 2**20)
    content = store_content(tmp_path / "big", tmp_path / "kept")
    tracemalloc.start()
    size = 0
    with (tmp_path / "big.zip").open("wb") as file:
        for piece in zip_folder(tmp_path / "kept" / content.sha256, content.files, "big"):
            size += file.write(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 2**20 < size
    assert zipfile.ZipFile(tmp_path / "big.zip").testzip() is None


def test_the_hash_tells_folders_apart_by_names_and_bytes(tmp_path):
    cases = [{"a": "bc"}, {"ab": "c"}, {"a": "b", "c": ""}, {"a": "", "b": "c"}, {"a/b": "c"}]
    cases += [{"a": "1:b,1:c"}, {"a": "1:b,1:", "c": ""}]
    seen = set()
    for number, files in enumerate(cases):
        for path, text in files.items():
            file = tmp_path / str(number) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        content = read_content(tmp_path / str(number))
        assert [note.path for note in content.files] == sorted(files)
        assert all(isinstance(note, FileDigest) for note in content.files)
        seen.add(content.sha256)
    assert len(seen) == len(cases)
