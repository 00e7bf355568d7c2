"Searches on both databases: as many trials as were asked for, whoever dies on the way."

import importlib
import json
import math
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import nbformat
import pytest
from databases import empty_database, new_database
from nbformat.v4 import new_code_cell, new_notebook
from sqlalchemy import inspect, make_url, select

from tunix_rt.core.errors import MissingError, RunError
from tunix_rt.core.settings import settings
from tunix_rt.data.datasets import build_dataset, load_dataset
from tunix_rt.jobs.leases import claim, expire_leases, record_result, renew
from tunix_rt.jobs.queue import get_queued, list_queued
from tunix_rt.runs.folder import start_run
from tunix_rt.scoring.predictions import make_prediction, write_predictions
from tunix_rt.store.backup import backup, restore
from tunix_rt.store.engine import connect_store, downgrade, open_store, ready, upgrade
from tunix_rt.store.tables import EvaluationRow, RunRow, TuningJob, now
from tunix_rt.traces.schema import Trace
from tunix_rt.tracking.evaluations import record_evaluation
from tunix_rt.tuning import controller as trials
from tunix_rt.tuning import trials as outcomes
from tunix_rt.tuning.controller import advance_jobs, advancing
from tunix_rt.tuning.jobs import cancel_job, create_job, get_job, list_jobs, start_job
from tunix_rt.tuning.study import open_study, study_storage

SPACE = {
    "rate": {"type": "loguniform", "min": 0.001, "max": 1.0},
    "width": {"type": "randint", "min": 1, "max": 9},
    "kind": {"type": "choice", "values": ["round", "square"]},
}


def loss(rate, width, kind):
    return 1 + math.log10(rate / 0.03) ** 2 + (width - 5) ** 2 / 50 + (kind == "square") / 10


def question(number):
    steps = [{"i": 0, "type": "work", "content": f"{number} + 1 = {number + 1}"}]
    return Trace(prompt=f"{number} + 1 = ?", steps=steps, final_answer=str(number + 1))


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    "A root of its own, with a dataset, an evaluation set and a notebook that may be searched."
    monkeypatch.setenv("TUNIX_RT_ROOT", str(tmp_path))
    settings.cache_clear()
    ask = "rate: float = 0.1\nwidth: int = 5\nkind: str = 'round'\nrun_dir: str = ''"
    cells = [new_code_cell(ask, metadata={"tags": ["parameters"]})]
    nbformat.write(new_notebook(cells=cells), tmp_path / "bowl.ipynb")
    build_dataset(map(question, range(100, 120)), name="sums", version="v1")
    build_dataset(map(question, range(20)), name="sums-held-out", version="v1")
    yield tmp_path
    settings.cache_clear()


@pytest.fixture(scope="module")
def searched_once(tmp_path_factory):
    "A database of either kind with Optuna's tables, which take longer to make than a search."
    file = tmp_path_factory.mktemp("searched") / "once.db"
    with new_database() as address:
        for url in (f"sqlite:///{file}", address):
            store = open_store(url)
            with study_storage(store):
                store.close()
        yield {"sqlite": file, "postgresql": make_url(address).database}


@pytest.fixture(params=["sqlite", "postgresql"])
def prepared_url(request, searched_once, tmp_path):
    "The address of a copy of it, for this test alone."
    once = searched_once[request.param]
    if request.param == "sqlite":
        yield f"sqlite:///{shutil.copy(once, tmp_path / 'tunix_rt.db')}"
        return
    with empty_database(once) as address:
        yield address


@pytest.fixture
def store(prepared_url):
    "An open store on each of the two databases, in which there has been a search before."
    store = open_store(prepared_url)
    yield store
    store.close()


def search(store, **fields):
    known = {
        "dataset_key": "sums-v1", "base_model_id": "none", "metric_name": "loss",
        "metric_mode": "min", "num_samples": 6, "search_space": SPACE, "pipeline": "bowl.ipynb",
    }  # fmt: skip
    job = create_job(store, "a bowl", **known | fields)
    start_job(store, job.id)
    return job.id


def labour(store, worker="one"):
    "Take a run, do what a worker would, without a notebook that takes its time."
    taken = claim(store, worker, 60.0)
    if taken is not None:
        record_result(store, taken, "completed", metrics={"loss": loss(**taken.run.parameters)})
    return taken


def to_its_end(store, job_id, labour=labour):
    for _ in range(200):
        if get_job(store, job_id).status != "running":
            break
        advance_jobs(store)
        labour(store)
    return get_job(store, job_id)


# A search


def test_a_search_finds_the_best_of_its_trials(store):
    job = to_its_end(store, search(store, num_samples=4))
    assert (job.status, len(job.trials), job.message) == ("completed", 4, "4 completed")
    best = min(job.trials, key=lambda trial: trial.value)
    assert (job.best_value, job.best_params) == (best.value, best.params)
    assert job.best_run_id == best.run_id and loss(**best.params) == best.value
    assert list(job.importances) and abs(sum(job.importances.values()) - 1) < 0.01
    assert all(0.001 <= trial.params["rate"] <= 1 for trial in job.trials)
    assert {type(trial.params["width"]) for trial in job.trials} == {int}
    run = get_queued(store, best.run_id)
    assert run.parameters == best.params and run.request == {
        "tuning_job": str(job.id), "trial": best.number,
    }  # fmt: skip


def test_the_same_seed_searches_the_same_way(tmp_path):
    store = open_store(f"sqlite:///{tmp_path / 'seeds.db'}")
    plans = [{}, {}, {"seed": 1}, {"sampler": "random"}]
    jobs = [to_its_end(store, search(store, num_samples=2, **plan)) for plan in plans]
    asked = [[trial.params for trial in job.trials] for job in jobs]
    assert asked[0] == asked[1] and asked[0] != asked[2]
    assert all(len({str(params) for params in each}) == 2 for each in asked)
    store.close()


def test_eight_callers_share_a_study(store, prepared_url):
    job_id = search(store, num_samples=4, max_concurrent_trials=3)
    most, lock, over = 0, threading.Lock(), threading.Event()

    def call(number):
        mine = open_store(prepared_url)
        while not over.is_set():
            advance_jobs(mine)
            if number < 3:
                labour(mine, f"worker {number}")
            job, at_work = get_job(mine, job_id), len(list_queued(mine, status="pending").runs)
            with lock:
                nonlocal most
                most = max(most, at_work)
            if job.status != "running":
                over.set()
            time.sleep(0.1)
        mine.close()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(call, range(8)))
    job = get_job(store, job_id)
    assert (job.status, job.message) == ("completed", "4 completed")
    assert [trial.number for trial in job.trials] == list(range(4))
    assert len(list_queued(store, limit=100).runs) == 4 and 1 <= most <= 3
    with study_storage(store) as storage:
        study = open_study(storage, job)
        assert [t.params for t in study.trials] == [t.params for t in job.trials]
        assert study.best_value == job.best_value


def test_a_thread_moves_it_on_while_others_work(store):
    job_id = search(store, num_samples=2)
    with advancing(store, seconds=0.05):
        for _ in range(400):
            labour(store)
            time.sleep(0.02)
            if get_job(store, job_id).status != "running":
                break
    assert get_job(store, job_id).status == "completed"


# What goes wrong


class Killed(BaseException):
    "The process is gone."


PLACES = [(trials, "draw"), (trials, "get_job"), (outcomes, "enqueue"), (outcomes, "note")]


def test_killed_anywhere_the_next_caller_goes_on(store, monkeypatch):
    job_id = search(store, num_samples=4, max_concurrent_trials=2)
    luck, kills = random.Random(7), []
    for module, name in PLACES:
        real = getattr(module, name)

        def fatal(*words, real=real, name=name, **options):
            chance = luck.random()
            if chance < 0.1:
                kills.append(f"before {name}")
                raise Killed
            found = real(*words, **options)
            if chance > 0.9:
                kills.append(f"after {name}")
                raise Killed
            return found

        monkeypatch.setattr(module, name, fatal)
    monkeypatch.setattr(trials, "_end_turn", lambda *_: None)  # nobody says that it is over
    for _ in range(200):
        try:
            advance_jobs(store)
        except Killed:
            pass
        labour(store)
        with store.writing() as session:
            row = session.get_one(TuningJob, job_id)
            row.turn_until = None  # time has passed
            if row.status != "running":
                break
    job = get_job(store, job_id)
    assert (job.status, job.message) == ("completed", "4 completed")
    assert len(list_queued(store, limit=100).runs) == 4 and len(kills) > 3, kills
    with study_storage(store) as storage:
        states = [trial.state.name for trial in open_study(storage, job).trials]
    assert states == ["COMPLETE"] * 4


def test_a_failed_run_fails_its_trial_and_no_more(store):
    def labour_and_fail(store, seen=[]):  # noqa: B006
        taken = claim(store, "one", 60.0)
        if taken is None:
            return
        seen.append(taken)
        if len(seen) == 2:
            record_result(store, taken, "failed", message="memory ran out")
        elif len(seen) == 3:
            record_result(store, taken, "completed", metrics={"gain": 1.0, "loss": None})
        else:
            record_result(store, taken, "completed", metrics={"loss": float(len(seen))})

    job = to_its_end(store, search(store, num_samples=4), labour_and_fail)
    assert [t.status for t in job.trials] == ["completed", "failed", "failed", "completed"]
    assert job.trials[1].message == "its run was failed: memory ran out"
    assert job.trials[2].message == "there is no figure 'loss'; there are gain"
    assert (job.status, job.best_value) == ("completed", 1.0)
    assert job.message == "2 completed, 2 failed"


def test_five_failures_are_enough(store):
    def fail(store):
        taken = claim(store, "one", 60.0)
        return taken and record_result(store, taken, "failed", message="no such model")

    job = to_its_end(store, search(store, num_samples=100), fail)
    assert (job.status, len(job.trials), job.best_run_id) == ("failed", 5, None)
    assert "5 failed; the last one because its run was failed: no such model" == job.message


def test_a_dead_worker_delays_its_trial_and_does_not_fail_it(store):
    job_id = search(store, num_samples=1)
    advance_jobs(store)
    taken = claim(store, "will die", 60.0)
    advance_jobs(store)
    assert get_job(store, job_id).trials[0].status == "running"
    with store.writing() as session:
        session.get_one(RunRow, taken.run.id).lease_until = now() - timedelta(seconds=1)
    assert expire_leases(store) == 1
    advance_jobs(store)
    with store.writing() as session:
        session.get_one(RunRow, taken.run.id).available_at = now() - timedelta(seconds=1)
    job = to_its_end(store, job_id)
    assert [trial.status for trial in job.trials] == ["completed"]
    assert get_queued(store, taken.run.id).attempts == 2


def test_called_off_nothing_of_it_runs_on(store):
    job_id = search(store, num_samples=9, max_concurrent_trials=2)
    advance_jobs(store)
    taken = claim(store, "one", 60.0)
    job = cancel_job(store, job_id)
    assert job.status == "cancelled" and {t.status for t in job.trials} == {"cancelled"}
    assert renew(store, taken) == "cancel_requested"
    assert advance_jobs(store) == 0 and claim(store, "two", 60.0) is None
    for wrong in (cancel_job, start_job):
        with pytest.raises(RunError, match="cancelled already"):
            wrong(store, job_id)


def test_a_search_that_runs_into_something_does_not_stop_the_others(store, monkeypatch):
    first, second = search(store, num_samples=4), search(store, num_samples=4)

    def broken(study):
        raise ImportError("somebody else's package")

    importance = importlib.import_module("optuna.importance")
    monkeypatch.setattr(importance, "get_param_importances", broken)
    job = to_its_end(store, first)
    assert (job.status, job.importances) == ("completed", None)
    has_news = trials._has_news

    def stumbling(store, job):
        if job.id == first:
            raise OSError("a folder that is away")
        return has_news(store, job)

    with store.writing() as session:
        session.get_one(TuningJob, first).status = "running"
    monkeypatch.setattr(trials, "_has_news", stumbling)
    assert to_its_end(store, second).status == "completed"
    assert "a folder that is away" in get_job(store, first).message


def test_called_off_between_training_and_examination_nobody_is_examined(store, monkeypatch):
    job_id = search(store, num_samples=1, evaluation_set="sums-held-out-v1", metric_name="score",
                    metric_mode="max")  # fmt: skip
    advance_jobs(store)
    taken = claim(store, "one", 60.0)
    record_result(store, taken, "completed", metrics={"loss": 1.0})
    (taken.run.path / "model").mkdir(parents=True)

    def just_then(*given):
        cancel_job(store, job_id)
        return {"model": "tiny", "dataset": "sums-held-out-v1"}

    monkeypatch.setattr("tunix_rt.tracking.evaluations.evaluate_parameters", just_then)
    advance_jobs(store)
    assert get_job(store, job_id).status == "cancelled"
    (exam,) = list_queued(store, pipeline="evaluate").runs
    assert exam.status == "cancelled" and claim(store, "two", 60.0) is None


# Stopping what is hopeless


def at_work(store, losses):
    "Take a run and write its loss, as a training run does while it lasts."
    taken = claim(store, "one", 60.0)
    taken.run.path.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": 10 * n, "loss": value}) for n, value in enumerate(losses)]
    (taken.run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return taken


def test_a_hopeless_trial_is_stopped(store):
    job_id = search(store, num_samples=5, metric_mode="max", metric_name="gain", prune=True)
    for _ in range(2):  # the first two are never stopped
        advance_jobs(store)
        taken = at_work(store, [3.0, 2.0, 1.0])
        advance_jobs(store)
        assert renew(store, taken) == "running"
        record_result(store, taken, "completed", metrics={"gain": 5.0})
    advance_jobs(store)
    promising = at_work(store, [3.0, 1.5])
    advance_jobs(store)
    assert renew(store, promising) == "running"
    record_result(store, promising, "completed", metrics={"gain": 6.0})
    advance_jobs(store)
    hopeless = at_work(store, [9.0, 8.0])
    advance_jobs(store)
    assert renew(store, hopeless) == "cancel_requested"
    assert get_job(store, job_id).trials[3].status == "pruning"
    advance_jobs(store)
    record_result(store, hopeless, "cancelled")
    advance_jobs(store)
    late = at_work(store, [9.0, 8.0])
    advance_jobs(store)
    record_result(store, late, "completed", metrics={"gain": 7.0})  # before it heard of it
    job = to_its_end(store, job_id)
    assert [t.status for t in job.trials] == ["completed"] * 3 + ["pruned", "completed"]
    assert "behind the median of earlier trials at step 10" in job.trials[3].message
    assert (job.best_value, job.message) == (7.0, "4 completed, 1 pruned")


# Scores


def test_a_score_comes_from_an_examination(store):
    job = create_job(
        store, "scored", dataset_key="sums-v1", base_model_id="tiny", num_samples=2,
        search_space={"learning_rate": {"type": "uniform", "min": 0.01, "max": 0.02}},
        parameters={"max_steps": 2}, evaluation_parameters={"max_new_tokens": 16},
    )  # fmt: skip
    assert job.settings["evaluation_set"] == "sums-held-out-v1"
    start_job(store, job.id)
    exam, asked = [question(number) for number in range(20)], []

    def labour(store):
        taken = claim(store, "one", 60.0)
        if taken is None:
            return
        asked.append(taken.run)
        run = start_run(taken.run.pipeline, taken.run.path, taken.run.parameters,
                        run_id=str(taken.run.id))  # fmt: skip
        if run.pipeline == "train":
            run.model.mkdir()
        else:
            right = 5 * sum(each.pipeline == "evaluate" for each in asked)
            said = [
                make_prediction(
                    trace,
                    f"<answer>{trace.final_answer if n < right else 'none'}</answer>",
                    finish_reason="stop",
                    prompt_tokens=1,
                    completion_tokens=1,
                )  # fmt: skip
                for n, trace in enumerate(exam)
            ]
            write_predictions(run.predictions, said)
            sha256 = load_dataset("sums-held-out-v1").fingerprint
            run.record(dataset={"key": "sums-held-out-v1", "sha256": sha256})
        run.finish({"loss": 1.0})
        record_result(store, taken, "completed", metrics={"loss": 1.0})
        if run.pipeline == "evaluate":
            record_evaluation(store, taken.run.id)
            ask_differently(taken.run.parent_run_id)

    def ask_differently(trained):
        "What others find out about the same model is no answer to the question of the job."
        with store.writing() as session:
            mine = session.scalars(
                select(EvaluationRow).where(EvaluationRow.run_id == trained)
            ).one()
            told = {c.name: getattr(mine, c.name) for c in EvaluationRow.__table__.columns}
            told |= {"id": uuid4(), "evaluation_set": "easy-v1", "score": 95.0}
            session.add(EvaluationRow(**told | {"evaluated_at": now()}))

    job = to_its_end(store, job.id, labour)
    assert [each.pipeline for each in asked] == ["train", "evaluate"] * 2
    assert asked[0].parameters["evaluation_set"] == "sums-held-out-v1"
    assert asked[0].parameters["model"] == "tiny" and asked[0].dataset_key == "sums-v1"
    assert asked[1].parent_run_id == asked[0].id and asked[1].parameters["max_new_tokens"] == 16
    assert [trial.value for trial in job.trials] == [25.0, 50.0]
    assert (job.status, job.best_run_id) == ("completed", asked[2].id)


# The tables


def test_a_backup_carries_a_search_to_the_other_database(store, tmp_path):
    job_id = search(store, num_samples=3)
    for _ in range(2):
        advance_jobs(store)
        labour(store)
    backup(store, tmp_path / "all.backup")
    before = to_its_end(store, job_id)
    with empty_database() as address:
        other = {"sqlite": address, "postgresql": f"sqlite:///{tmp_path / 'other.db'}"}
        target = connect_store(other[store.dialect])
        upgrade(target)
        restore(target, tmp_path / "all.backup")
        after = to_its_end(target, job_id)
        assert [t.params for t in after.trials] == [t.params for t in before.trials]
        assert (after.status, after.best_value) == ("completed", before.best_value)
        target.close()


def test_migrations_leave_the_tables_of_optuna_alone(store):
    to_its_end(store, search(store, num_samples=1))

    def tables():
        with store.reading() as session:
            return set(inspect(session.connection()).get_table_names())

    theirs = {"studies", "trials", "alembic_version"}
    assert theirs < tables()
    downgrade(store, "base")
    assert theirs < tables() and "tuning_jobs" not in tables()
    upgrade(store)
    ready(store)
    assert to_its_end(store, search(store, num_samples=1)).status == "completed"


def test_four_first_searches_at_once_make_the_tables(database_url):
    store = open_store(database_url)  # where nobody has searched before
    for _ in range(4):
        search(store, num_samples=1)
    stores = [open_store(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(advance_jobs, stores))
    for each in stores:
        each.close()
    assert [len(get_job(store, job.id).trials) for job in list_jobs(store).jobs] == [1] * 4
    store.close()


# Lists and refusals


def test_jobs_are_listed_newest_first(store):
    ids = [search(store, num_samples=1) for _ in range(3)]
    first = list_jobs(store, limit=2)
    assert [job.id for job in first.jobs] == ids[:0:-1] and first.next_offset == 2
    assert [job.id for job in list_jobs(store, limit=2, offset=2).jobs] == ids[:1]
    cancel_job(store, ids[1])
    assert [job.id for job in list_jobs(store, status="cancelled").jobs] == [ids[1]]
    with pytest.raises(RunError, match="choose one of"):
        list_jobs(store, status="sleeping")
    with pytest.raises(MissingError):
        get_job(store, outcomes.trial_id(ids[0], 7))


WRONG = [
    {"search_space": {}},
    {"search_space": {"rate": {"type": "uniform", "min": 0.0, "max": float("nan")}}},
    {"search_space": {"rate": {"type": "uniform", "min": 0.0}}},
    {"search_space": {"rate": {"type": "uniform", "min": "0", "max": 1}}},
    {"search_space": {"rate": {"type": "normal", "min": 0, "max": 1}}},
    {"search_space": {"rate": {"type": "choice", "values": []}}},
    {"search_space": {"rate": {"type": "choice", "values": [0.1, 0.1]}}},
    {"search_space": {"rate": {"type": "choice", "values": [[0.1]]}}},
    {"search_space": {"rate": {"type": "choice", "values": [0.1], "min": 1}}},
    {"search_space": {"rate": 3}},
    {"search_space": {"width": {"type": "randint", "min": 1.5, "max": 3}}},
    {"search_space": {"width": {"type": "randint", "min": 1, "max": 2**63}}},
    {"search_space": {"run_dir": {"type": "choice", "values": ["/etc"]}}},
    {"parameters": {"width": "five"}},
    {"parameters": {"rate": 0.1}},
    {"parameters": {"run_dir": "/etc"}},
    {"evaluation_parameters": {"limits": 3}},
    {"metric_mode": "up"},
    {"metric_name": "\0"},
    {"base_model_id": " "},
    {"max_concurrent_trials": 11},
    {"num_samples": 0},
    {"sampler": "grid"},
    {"seed": -1},
    {"timeout_seconds": 0},
    {"pipeline": "nowhere.ipynb"},
    {"color": "red"},
    {"evaluation_set": "sums-v1"},
]


def test_what_cannot_be_searched_is_refused_before_it_is_kept(tmp_path):
    store = open_store(f"sqlite:///{tmp_path / 'refusals.db'}")
    for wrong in WRONG:
        with pytest.raises(RunError):
            search(store, **wrong)
    with store.reading() as session:
        assert session.scalar(select(TuningJob.id)) is None
    store.close()
