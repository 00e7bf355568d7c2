"Deletion on both databases: two at once, in the middle of a build, and killed at every step."

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from serving import make_run, register, serving, sum_trace
from sqlalchemy import select

from tunix_rt.core.errors import MissingError
from tunix_rt.core.settings import resolve, settings
from tunix_rt.data.datasets import build_dataset, load_dataset
from tunix_rt.jobs.leases import claim
from tunix_rt.jobs.queue import enqueue, get_queued, request_cancel
from tunix_rt.registry import deletion
from tunix_rt.registry.models import version_folder
from tunix_rt.registry.promotion import promote, verify_version
from tunix_rt.runs.folder import start_run
from tunix_rt.store import deletions as folders
from tunix_rt.store.backup import backup, restore
from tunix_rt.store.datasets import build_from_store
from tunix_rt.store.deletions import (
    InUse,
    TraceChoice,
    delete_traces,
    deletions_among,
    list_deletions,
    settle_deletions,
)
from tunix_rt.store.engine import open_store
from tunix_rt.store.preferences import keep_preferences
from tunix_rt.store.ratings import add_rating
from tunix_rt.store.search_index import update_index
from tunix_rt.store.tables import EvaluationRow, RunRow
from tunix_rt.store.tokens import create_token
from tunix_rt.store.traces import add_score, add_traces, count_traces, list_traces
from tunix_rt.traces.schema import Trace
from tunix_rt.tracking import delete_dataset as datasets
from tunix_rt.tracking import delete_preferences as preferences
from tunix_rt.tracking.baselines import list_baselines, set_baseline
from tunix_rt.tracking.delete_dataset import delete_dataset, verify_dataset
from tunix_rt.tracking.delete_preferences import delete_preferences
from tunix_rt.tracking.evaluations import evaluate_run
from tunix_rt.tracking.reconcile import clean_up


def traces(*numbers, **meta):
    return [Trace.model_validate(sum_trace(number, **meta)) for number in numbers]


def rated(store, name: str):
    "Two answers to one prompt, rated and kept as a pair."
    worse = Trace.model_validate(sum_trace(1, source=name) | {"final_answer": "wrong"})
    for each, stars in zip(
        add_traces(store, [*traces(1, source=name), worse]), (5, 2), strict=True
    ):
        add_rating(store, each.id, author="ann", stars=stars)
    update_index(store)
    return keep_preferences(store, name)[0]


# Traces


def test_a_deleted_trace_is_gone_at_once_and_frozen_datasets_say_so(api, store):
    ids = api.post("/api/traces/batch", json=[sum_trace(n) for n in range(5)]).json()["traces"]
    id = ids[2]["id"]
    build = {"dataset_name": "all", "dataset_version": "v1"}
    assert api.post("/api/datasets/build", json=build).status_code == 201
    add_score(store, UUID(id), score=1.0, criteria="baseline", details={})

    preview = api.delete(f"/api/traces/{id}?dry_run=true")
    assert preview.json()["deleted"] is False and count_traces(store) == 5
    acts = api.get("/api/audit").json()["data"]
    assert id not in [each["target"] for each in acts]  # a dry run is no deletion
    done = api.delete(f"/api/traces/{id}", params={"reason": "a name in it"})
    assert done.status_code == 200 and done.json()["deleted"] is True
    assert id in [each["target"] for each in api.get("/api/audit").json()["data"]]

    listed = [each["id"] for each in api.get("/api/traces").json()["data"]]
    assert id not in listed and len(listed) == 4 == count_traces(store)
    assert api.get("/api/traces", params={"text": "2 + 2"}).json()["data"] == []
    gone = api.get(f"/api/traces/{id}")
    assert gone.status_code == 404 and "a name in it" in gone.json()["detail"]
    assert api.delete(f"/api/traces/{id}").status_code == 404
    told = api.get("/api/datasets/all-v1/verify").json()
    assert (told["trace_count"], told["deleted_count"]) == (5, 1)
    assert told["deleted"][0]["reason"] == "a name in it"
    later = api.post("/api/datasets/build", json=build | {"dataset_version": "v2"})
    assert later.json()["trace_count"] == 4

    api.post("/api/traces", json=sum_trace(2))  # the same content comes again
    assert api.get("/api/datasets/all-v1/verify").json()["deleted_count"] == 0


def test_two_who_delete_the_same_traces_delete_each_once(store):
    add_traces(store, traces(*range(2300), batch=1))
    choice = TraceChoice(source="tests")
    with ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(lambda who: delete_traces(store, choice, who=who), ("a", "b")))
    assert sum(counts) == 2300 and count_traces(store) == 0
    page = list_deletions(store, limit=5000).deletions
    assert len(page) == len({row.item_id for row in page}) == 2300


def test_traces_that_arrive_meanwhile_stay_and_a_stale_preview_is_refused(api, store):
    add_traces(store, traces(*range(3)))
    query = {"source": "tests", "dry_run": True}
    assert api.delete("/api/traces", params=query).json()["count"] == 3
    add_traces(store, traces(7))
    late = api.delete("/api/traces", params={"source": "tests", "expected": 3})
    assert late.status_code == 409 and count_traces(store) == 4
    for query in ({}, {"sorce": "tests", "expected": 4}, {"source": "tests"}):
        assert api.delete("/api/traces", params=query).status_code == 422
    edge = {"before": "9999-12-31T23:59:59-14:00", "expected": 4}
    assert api.delete("/api/traces", params=edge).status_code == 422
    assert count_traces(store) == 4


def test_a_build_and_a_deletion_at_once_leave_a_dataset_that_proves_itself(store, root):
    add_traces(store, traces(*range(1500)))
    begun = threading.Event()

    def delete():
        begun.wait()
        return delete_traces(store, TraceChoice(source="tests"), who="a")

    with ThreadPoolExecutor(1) as pool:
        gone = pool.submit(delete)
        begun.set()
        try:
            built = build_from_store(store, name="race", version="v1")
        except Exception as error:
            assert "no trace matches" in str(error)
            built = None
        assert gone.result() == 1500
    if built:
        assert len(load_dataset("race-v1")) == len(built)
        assert len(verify_dataset(store, "race-v1")[1]) == len(built)


def test_a_backup_made_before_a_deletion_brings_the_trace_back(store, root):
    ids = [each.id for each in add_traces(store, traces(1, 2))]
    backup(store, root / "before.backup")
    delete_traces(store, TraceChoice(ids=ids[:1]), who="a")
    backup(store, root / "after.backup")
    for name, count, gone in (("before", 2, 0), ("after", 1, 1)):
        other = open_store(f"sqlite:///{root / name}.db")
        restore(other, root / f"{name}.backup")
        assert (count_traces(other), len(list_traces(other).traces)) == (count, count)
        assert len(deletions_among(other, ids)) == gone
        other.close()


def test_pages_delete_what_was_confirmed_and_say_who(own_page, root):
    """A trace, a search, a dataset, a baseline, a version and its run, without a script."""
    page, store, id = own_page, own_page.store, make_run(own_page.store, root, 3)
    version = promote(store, "adder", id, aliases=["champion"])
    evaluate_run(store, id)
    set_baseline(store, "a/b", id, "score")
    ids = [each.id for each in add_traces(store, traces(*range(4)))]
    build_dataset(traces(1), name="spare", version="v1")
    rated(store, "r-v1")
    assert '"/preferences/r-v1/delete"' in page.get("/datasets").text
    assert page.get("/preferences/r-v1").status_code == 200

    stopped = page.get(f"/runs/{id}/delete").text
    for needed in (f"/models/versions/{version.id}/delete", "/baselines/a%2Fb/delete"):
        assert f'href="{needed}"' in stopped
    assert "<button" not in stopped and page.post(f"/runs/{id}/delete").status_code == 422
    refused = page.post(f"/models/versions/{version.id}/delete", data={"confirm": "adder@v1"})
    assert refused.status_code == 409 and "adder@champion" in refused.text
    page.post(f"/models/{version.model_id}/aliases/remove", data={"alias": "champion"})
    for path, word in (
        (f"/traces/{ids[0]}", "yes"), ("/traces", "3"), ("/datasets/spare-v1", "spare-v1"),
        ("/preferences/r-v1", "r-v1"), ("/baselines/a%2Fb", "yes"),
        (f"/models/versions/{version.id}", "adder@v1"), (f"/runs/{id}", "yes"),
    ):  # fmt: skip
        address = f"{path}/delete?source=tests" if path == "/traces" else f"{path}/delete"
        for wrong in ({}, {"confirm": f"{word}9"}):
            assert page.post(address, data=wrong).status_code == 422, path
        done = page.post(address, data={"confirm": word, "reason": "<b>spring</b>"})
        assert done.status_code == 200 and "&lt;b&gt;spring" in done.text, (path, done.text)
        assert "Back to the list" in done.text and "<b>spring" not in done.text
        assert page.get(address).status_code in (404, 422) or path == "/traces"
    assert count_traces(store) == 2 and list_baselines(store).baselines == []
    log = page.get("/api/audit").json()["data"]
    assert {each["action"] for each in log} >= {"delete_search_form", "delete_one_run_form"}
    assert [each["count"] for each in log if each["action"] == "delete_search_form"] == [3]
    listed = page.get("/deletions").text
    assert listed.count("pages, testclient") == 7 and "&lt;b&gt;spring" in listed


def test_who_may_only_read_sees_no_button_and_deletes_nothing(own_page, root):
    store = own_page.store
    (trace,) = add_traces(store, traces(3))
    id = make_run(store, root, 3)
    _, secret = create_token(store, "eve", "read", by="test")
    with serving(store) as client:
        client.headers |= {"Accept": "text/html", "Authorization": f"Bearer {secret}"}
        pages = (f"/traces/{trace.id}", "/traces?source=tests", f"/runs/{id}", "/datasets/sums-v1")
        for path in pages:
            assert "Delete" not in client.get(path).text.replace("Deletions", ""), path
            asked = path.replace("?", "/delete?") if "?" in path else f"{path}/delete"
            for answer in (client.get(asked), client.post(asked, data={"confirm": "yes"})):
                assert answer.status_code == 403 and "needs write" in answer.text, path
        assert client.get("/deletions").status_code == 200


@pytest.fixture
def own_page(store, root):
    "A browser without scripts, on each of the two databases."
    with serving(store) as client:
        client.headers["Accept"] = "text/html"
        client.store = store
        yield client


# Datasets and runs


def test_a_dataset_in_use_stays_whoever_names_it(store, root):
    named = [
        {"dataset": "sums-v1"},
        {"dataset": "other-v1", "evaluation_set": "sums-v1:test"},
        {"decontaminate": [str(root / "data/datasets/sums-v1")]},
    ]
    for parameters in named:
        row = RunRow(pipeline="train", status="completed", parameters=parameters)
        with store.writing() as session:
            session.add(row)
        with pytest.raises(InUse, match=f"the run {row.id} .*names it"):
            delete_dataset(store, "sums-v1", who="a")
        assert load_dataset("sums-v1") and deletion.delete_run(store, row.id, who="a").deleted
    near = RunRow(pipeline="train", status="completed", parameters={"dataset": "sums-v10"})
    with store.writing() as session:
        session.add(near)
    build_dataset(traces(1), name="child", version="v1", parent_dataset_id="sums-v1")
    with pytest.raises(InUse, match="the dataset child-v1 was derived from it"):
        delete_dataset(store, "sums-v1", who="a")
    assert delete_dataset(store, "child-v1", who="a").deleted
    assert delete_dataset(store, "sums-v1", who="a").deleted


def test_a_run_that_is_queued_at_the_moment_of_a_deletion_wins_or_is_refused(store, root):
    for _ in range(5):
        build_dataset(traces(1, 2), name="race", version="v1")
        ready = threading.Barrier(2)

        def queue(ready=ready):
            ready.wait()
            try:
                return enqueue(store, "train", {"dataset": "race-v1"})
            except MissingError:
                return None

        def delete(ready=ready):
            ready.wait()
            try:
                return delete_dataset(store, "race-v1", who="a")
            except InUse:
                return None

        with ThreadPoolExecutor(2) as pool:
            run, gone = pool.submit(queue), pool.submit(delete)
        assert (run.result() is None) == (gone.result() is not None)
        if run.result():
            with store.writing() as session:
                session.delete(session.get(RunRow, run.result().id))


def test_a_damaged_dataset_can_be_deleted(store, root):
    (root / "data/datasets/sums-v1/manifest.json").write_text("{")
    assert delete_dataset(store, "sums-v1", who="a").deleted


def test_what_a_run_is_needed_for_is_said_and_the_rest_goes_along(store, api, root):
    id = make_run(store, root, 3)
    evaluate_run(store, id)
    version = promote(store, "adder", id, aliases=["champion"])
    set_baseline(store, "floor", id, "score")
    with store.reading() as session:
        asked = session.scalar(select(RunRow.id).where(RunRow.parent_run_id == id))

    refused = api.delete(f"/api/tunix/runs/{id}")
    assert refused.status_code == 409
    for part in ("adder@v1 was promoted from it and is champion", "the baseline floor"):
        assert part in refused.json()["detail"]
    preview = api.delete(f"/api/tunix/runs/{id}?dry_run=true").json()
    assert [each["what"] for each in preview["dependents"]] == ["model_version", "baseline"]
    assert api.delete(f"/api/models/versions/{version.id}").status_code == 409

    folder = get_queued(store, asked).path
    assert api.delete(f"/api/tunix/runs/{asked}").json()["deleted"] and not folder.exists()
    api.delete(f"/api/models/{version.model_id}/aliases/champion")
    assert api.delete(f"/api/models/{version.model_id}").json()["along"] == ["adder@v1"]
    assert not version_folder(version).exists()
    with store.writing() as session:
        session.execute(folders.text("DELETE FROM baselines"))
    assert api.delete(f"/api/tunix/runs/{id}").status_code == 200
    with store.reading() as session:
        assert session.scalars(select(EvaluationRow)).all() == []
    kinds = [row["what"] for row in api.get("/api/deletions").json()["data"]]
    assert kinds == ["run", "model", "model_version", "run"]


def test_a_run_at_work_stays_and_its_lease_too(store, api, root):
    waiting = enqueue(store, "train", {"dataset": "sums-v1"})
    taken = claim(store, "ada:1", 60.0)
    for status in ("running", "cancel_requested"):
        with store.writing() as session:
            session.get(RunRow, waiting.id).status = status
        refused = api.delete(f"/api/tunix/runs/{waiting.id}")
        assert refused.status_code == 409 and "cancel it first" in refused.json()["detail"]
    assert api.delete("/api/datasets/sums-v1").status_code == 409
    assert taken.run.id == waiting.id and get_queued(store, waiting.id)


def test_a_run_that_a_process_holds_stays(store, root):
    held = start_run("train", root / "outputs/runs/held", {})
    id = register(store, root, held)  # the row says completed, and a process still writes
    with pytest.raises(InUse, match="is writing into its folder"):
        deletion.delete_run(store, id, who="a")
    held.finish({})
    assert deletion.delete_run(store, id, who="a").deleted


def test_preferences_that_a_run_was_given_stay(store, api, root):
    file, path = rated(store, "rated-v1"), "/api/traces/preferences/rated-v1"
    assert api.get("/api/traces/preferences").json() == {"data": ["rated-v1"]}
    assert api.get(path).text == file.read_text() and "rejected" in file.read_text()
    waiting = enqueue(store, "preference", {"pairs": f"data/datasets/{file.name}"})
    refused = api.delete(path)
    assert refused.status_code == 409 and f"{waiting.id} (preference, pending)" in refused.text
    assert api.delete("/api/traces/preferences/rated-v2").status_code == 404
    assert api.delete("/api/traces/preferences/..%2Fx").status_code == 404
    assert api.delete(f"{path}?dryrun=true").status_code == 422

    request_cancel(store, waiting.id)
    assert deletion.delete_run(store, waiting.id, who="a").deleted
    preview = api.delete(f"{path}?dry_run=true").json()
    assert (preview["what"], preview["deleted"], preview["dependents"]) == (
        "preferences",
        False,
        [],
    )
    assert file.is_file() and preview["size_bytes"] == file.stat().st_size
    done = api.delete(path, params={"reason": "old"})
    assert done.json()["deleted"] and not file.exists() and api.get(path).status_code == 404
    assert api.delete(path).status_code == 404
    (row,) = api.get("/api/deletions", params={"what": "preferences"}).json()["data"]
    assert (row["name"], row["reason"], len(row["fingerprint"])) == ("rated-v1", "old", 64)
    acts = [(each["action"], each["target"]) for each in api.get("/api/audit").json()["data"]]
    assert acts.count(("remove_preferences", "rated-v1")) == 1


def test_two_who_delete_a_run_and_a_version_delete_it_once(store, api, root):
    id = make_run(store, root, 3)
    version = promote(store, "adder", id)
    for path in (f"/api/models/versions/{version.id}", f"/api/tunix/runs/{id}"):
        with ThreadPoolExecutor(4) as pool:
            codes = sorted(pool.map(lambda path: api.delete(path).status_code, [path] * 4))
        assert codes == [200, 404, 404, 404]


def test_a_promotion_during_a_deletion_keeps_its_files(store, root):
    id = make_run(store, root, 3)
    for _ in range(5):
        old = promote(store, "adder", id)
        ready = threading.Barrier(2)

        def again(ready=ready):
            ready.wait()
            return promote(store, "other", id)

        def delete(ready=ready, old=old):
            ready.wait()
            deletion.delete_version(store, old.id, who="a")

        with ThreadPoolExecutor(2) as pool:
            new, gone = pool.submit(again), pool.submit(delete)
        gone.result()
        assert verify_version(store, new.result().id).ok
        deletion.delete_version(store, new.result().id, who="a")
    assert list(resolve(settings().models).iterdir()) == []


# Killed


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(point: str, database_url: str, act) -> None:
    "Do something in a child process that is killed at a function of the deletion."
    child = os.fork()
    if not child:
        try:
            if point == "remove":
                folders.remove_path = die
            elif point == "commit":
                datasets.hiding = deletion.hiding = preferences.hiding = die_inside
            else:
                for module in (datasets, deletion, preferences):
                    module.record_deletion = die
            act(open_store(database_url))
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def die_inside(folder, act_id):
    "Hide a folder as a deletion does, and die before its transaction commits."
    begun = folders.hiding(folder, act_id)
    begun.__enter__()
    die()


@pytest.mark.parametrize(
    ("point", "there"), [("record", True), ("commit", True), ("remove", False)]
)
def test_a_killed_deletion_is_undone_or_finished_by_the_next_start(
    store, database_url, root, point, there
):
    id = make_run(store, root, 3)
    folder = get_queued(store, id).path
    killed_at(point, database_url, lambda own: deletion.delete_run(own, id, who="a"))
    assert clean_up(store) == (point != "record")
    assert folder.is_dir() is there and not list(folder.parent.glob(".*"))
    if there:
        assert json.loads((folder / "run.json").read_text())["run_id"] == str(id)
        assert get_queued(store, id).path == folder
        assert deletion.delete_run(store, id, who="a").deleted
    else:
        with pytest.raises(MissingError):
            get_queued(store, id)
    assert len(list_deletions(store).deletions) == 1

    build_dataset(traces(1), name="doomed", version="v1")
    killed_at(point, database_url, lambda own: delete_dataset(own, "doomed-v1", who="a"))
    settle_deletions(store)
    assert (root / "data/datasets/doomed-v1").is_dir() is there

    file = rated(store, "doomed-v1")
    killed_at(point, database_url, lambda own: delete_preferences(own, "doomed-v1", who="a"))
    settle_deletions(store)
    assert file.is_file() is there and not list(file.parent.glob(".*"))
