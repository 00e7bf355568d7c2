"Faults that once stayed for good or ended in a traceback: odd names, damaged files, lost runs."

import gzip
import hashlib
import json
import os
import random
import sys
import time
from datetime import datetime
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from serving import make_run, serving, sum_trace
from sqlalchemy import text

from tunix_rt.core.errors import RunError, StoreError, TunixError
from tunix_rt.core.files import hidden_beside
from tunix_rt.jobs.leases import claim, expire_leases
from tunix_rt.jobs.queue import enqueue, get_queued, request_cancel
from tunix_rt.jobs.worker import work
from tunix_rt.runs.folder import start_run
from tunix_rt.store import migrations
from tunix_rt.store.backup import backup, check_backup, restore
from tunix_rt.store.engine import connect_store, current, open_store, upgrade
from tunix_rt.store.tables import RunRow
from tunix_rt.store.traces import add_traces
from tunix_rt.traces.schema import Trace
from tunix_rt.tracking.import_run import import_run
from tunix_rt.tracking.reconcile import reconcile_runs

# Names

ODD = {
    "bytes": "é" * 150,
    "many": "n" * 5000,
    "break": "a\nb",
    "return": "a\rb",
    "separator": "a\u2028b",
    "escape": "\x1b]0;owned\x07",
    "override": "exe.\u202egnp",
    "isolate": "\u2066a",
    "mark": "\ufeffgolden",
}


def test_an_odd_name_is_refused_or_shown_and_never_a_fault(api, store, root):
    run = make_run(store, root, 3)
    model = api.post("/api/models", json={"name": "adder"}).json()["id"]
    for name in ODD.values():
        refuse_name(api, run, model, name)


def refuse_name(api, run, model, name):
    "Use a name wherever a name is taken."
    search = {"dataset_key": "sums-v1", "base_model_id": "tiny", "search_space": {}}
    build = {"dataset_name": name, "dataset_version": "v1"}
    made = [
        api.post("/api/datasets/build", json=build),
        api.post("/api/datasets/build", json={"dataset_name": "a", "dataset_version": name}),
        api.post("/api/models", json={"name": name}),
        api.put(f"/api/models/{model}/aliases/{quote(name, '')}", json={"version_id": model}),
        api.post("/api/tuning/jobs", json={**search, "name": name}),
        api.post("/api/tunix/run", json={"dataset_key": "sums-v1", "model_id": name}),
        api.post("/api/tunix/run", json={"dataset_key": name, "model_id": "tiny"}),
        api.post("/api/datasets/ingest", json={"path": name, "source_name": "t"}),
        api.post("/api/datasets/upload", params={"source_name": name}, content=b"{}"),
        api.get(f"/api/datasets/{quote(name, '')}"),
        api.get(f"/api/datasets/{quote(name, '')}/export.jsonl"),
        api.get(f"/api/tunix/runs/{run}/artifacts/{quote(name, '')}/download"),
        api.get(f"/api/tunix/runs/{quote(name, '')}"),
        api.delete(f"/api/datasets/{quote(name, '')}"),
    ]
    if len(name) <= 256 and name != ODD["bytes"]:
        wanted = {"name": name, "run_id": str(run), "metric": "loss"}
        made.append(api.post("/api/regression/baselines", json=wanted))
    assert [answer.status_code for answer in made if not 400 <= answer.status_code < 500] == []
    paths = ["/datasets/{}", "/runs/{}", "/models/{}", "/traces/{}"]
    paths += ["/traces?source={}", "/runs?dataset_key={}", "/leaderboard?model_id={}"]
    paths += ["/api/traces?text={}", "/api/tunix/runs?model_id={}", "/api/evaluations?judge={}"]
    for path in paths:
        assert api.get(path.format(quote(name, ""))).status_code < 500, path


def test_the_longest_key_can_be_built_and_deleted(api, store, root):
    add_traces(store, [Trace.model_validate(sum_trace(1))])
    build = {"dataset_name": "é" * 98, "dataset_version": "v1"}
    key = api.post("/api/datasets/build", json=build).json()["dataset_key"]
    assert len(key.encode()) == 199
    assert api.get(f"/api/datasets/{quote(key)}").status_code == 200
    assert api.delete(f"/api/datasets/{quote(key)}").json()["deleted"] is True
    longer = {"dataset_name": "é" * 99, "dataset_version": "v1"}
    assert api.post("/api/datasets/build", json=longer).status_code == 422


def test_odd_file_names_break_neither_a_run_nor_its_page(api, store, root):
    run = start_run("train", root / "outputs/runs/odd", {"steps": 1})
    for name in (b"caf\xe9.txt", b"two\nlines", b"esc\x1b[31m", b"a:b*", b"x" * 255):
        (run.folder / os.fsdecode(name)).write_text("odd")
    run.finish({"loss": 1.0})
    run.write_checksums()
    row = import_run(store, run.folder)
    names = [
        each["name"] for each in api.get(f"/api/tunix/runs/{row.id}/artifacts").json()["artifacts"]
    ]
    assert {"caf\\xe9.txt", "two\\nlines", "esc\\x1b[31m", "a:b*"} <= set(names)
    assert api.get(f"/runs/{row.id}").status_code == 200
    long = api.get(f"/api/tunix/runs/{row.id}/artifacts/{'x' * 255}/download")
    assert long.status_code == 200 and long.content == b"odd"


# Damaged manifests

DAMAGE = {
    "cut": "{",
    "list": "[]",
    "empty": "{}",
    "number": "7",
    "bytes": "\udcff",
    "types": '{"dataset_key": 1, "trace_count": "many", "splits": [], "fingerprints": 3}',
    "inner": '{"dataset_key": "a", "trace_count": 1, "splits": {"a": "b"}, "fingerprints": {}}',
    "folder": None,
}


def test_a_damaged_manifest_hides_no_other_dataset(api, root):
    for name, written in DAMAGE.items():
        manifest = root / "data/datasets" / f"bad-{name}" / "manifest.json"
        manifest.parent.mkdir()
        if written is None:
            manifest.mkdir()
        else:
            manifest.write_bytes(os.fsencode(written))
    found = {each["dataset_key"]: each for each in api.get("/api/datasets").json()["data"]}
    assert found["sums-v1"]["trace_count"] == 8 and found["sums-v1"]["problem"] is None
    for name in DAMAGE:
        path = f"/api/datasets/bad-{name}"
        if name != "folder":  # nothing by that name is a dataset's manifest
            assert "bad-" in found[f"bad-{name}"]["problem"]
        for wanted in (path, f"{path}/export.jsonl", f"{path}/verify", f"/datasets/bad-{name}"):
            assert 400 <= api.get(wanted).status_code < 500, wanted
        order = {"dataset_key": f"bad-{name}", "model_id": "tiny", "dry_run": False}
        asked = api.post("/api/tunix/run?mode=async", json=order)
        assert 400 <= asked.status_code < 500, asked.text
    assert api.get("/datasets").status_code == api.get("/").status_code == 200


# Runs that were done


def done_in_folder(store, **fields):
    "A run whose notebook has finished, and whose row says something else."
    asked = enqueue(store, "train", {"dataset": "sums-v1"}, max_attempts=1)
    taken = claim(store, "ada:1", 0.01)
    run = start_run("train", taken.run.path, {"dataset": "sums-v1"}, run_id=str(asked.id))
    run.log.write_text("step 1\n")
    run.finish({"loss": 0.5})
    with store.writing() as session:
        row = session.get(RunRow, asked.id)
        for name, value in fields.items():
            setattr(row, name, value)
    return asked.id, run


def test_a_worker_that_dies_after_run_json_leaves_no_failed_run(store, root):
    told = []
    id, _ = done_in_folder(store)
    time.sleep(0.02)
    assert expire_leases(store, lambda _, run: told.append(run.run_id)) == 1
    row = get_queued(store, id)
    assert (row.status, row.metrics, row.exit_code) == ("completed", {"loss": 0.5}, 0)
    assert told == [str(id)] and row.duration_seconds is not None


@pytest.mark.parametrize("status", ["pending", "running"])
def test_a_run_that_was_done_is_not_cancelled(store, root, status):
    id, _ = done_in_folder(store, status=status)
    time.sleep(0.02)
    assert request_cancel(store, id).status == "completed"
    with pytest.raises(RunError, match="completed already"):
        request_cancel(store, id)


@pytest.mark.parametrize("status", ["failed", "timeout", "cancelled"])
def test_the_row_of_a_run_that_was_continued_follows_its_folder(store, root, status):
    id, run = done_in_folder(store, status=status, lease_until=None)
    seen = {}
    assert reconcile_runs(store, seen) == [id] and reconcile_runs(store, seen) == []
    assert get_queued(store, id).status == "completed"

    other, run = done_in_folder(store, status=status, lease_until=None)
    run.write_checksums()
    assert import_run(store, run.folder).status == "completed"
    assert get_queued(store, other).metrics == {"loss": 0.5}


def test_a_run_that_was_cancelled_before_it_began_can_be_brought_in(store, root):
    id = enqueue(store, "train", {"dataset": "sums-v1"}).id
    request_cancel(store, id)
    run = start_run("train", root / "elsewhere/run", {"dataset": "sums-v1"}, run_id=str(id))
    run.log.write_text("step 1\n")
    run.finish({"loss": 0.5})
    run.write_checksums()
    row = import_run(store, run.folder)
    assert row.status == "completed" and row.path.is_dir() and row.path != run.folder


def test_a_foreign_row_or_folder_is_not_taken_for_the_run(store, root):
    "The folder must hold this very run, and must say that it completed."
    id, run = done_in_folder(store, status="failed", lease_until=None)
    for facts in ({"run_id": str(UUID(int=5))}, {"run_id": str(id), "status": "running"}):
        (run.folder / "run.json").write_text(json.dumps({**run.facts, **facts}))
        assert reconcile_runs(store) == []
    (run.folder / "run.json").write_text("{")
    assert reconcile_runs(store) == [] and get_queued(store, id).status == "failed"


KILLED_ONCE = """
import os, sys
if "ipykernel_launcher" in " ".join(sys.orig_argv) and os.path.exists({mark!r}):
    os.remove({mark!r})
    os.kill(os.getpid(), 9)
"""


@pytest.mark.usefixtures("own_kernels")
def test_a_kernel_that_is_killed_while_it_starts_is_tried_again(tmp_path, root, monkeypatch):
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    ask = new_code_cell("steps: int = 1  # How many", metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[ask], metadata={"kernelspec": kernel})
    nbformat.write(notebook, root / "one.ipynb")
    mark = tmp_path / "kill-me"
    mark.touch()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(KILLED_ONCE.format(mark=str(mark)))
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, sys.path)])
    monkeypatch.setenv("PYTHONPATH", path)
    store = open_store(f"sqlite:///{tmp_path / 'runs.db'}")
    run = enqueue(store, "one.ipynb")
    assert work(store, once=True) == 1 and not mark.exists()
    again = get_queued(store, run.id)
    assert again.status == "pending" and "did not start" in again.message
    with store.writing() as session:
        session.get(RunRow, run.id).available_at = again.queued_at
    assert work(store, once=True) == 1
    assert get_queued(store, run.id).status == "completed"
    store.close()


def test_what_a_killed_process_left_is_gone_after_the_next_start(store, root, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(root / "tmp"))
    home = root / "data" / "datasets"
    left = [home / ".big-v1.tmp-0123abcd", root / "outputs/models/.arriving.tmp-0123abcd"]
    for path in left:
        path.mkdir(parents=True)
        (path / "traces.jsonl").write_text("{}")
    with hidden_beside(home / "mine-v1", Path.mkdir) as mine, serving(store):
        deadline = time.monotonic() + 20
        while any(path.exists() for path in left):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert mine.is_dir()


# Malformed backups, files and rows


def forge(path: Path, lines: list[str]) -> Path:
    "Write a backup whose checksum is right, whatever is in it."
    said = "".join(line + "\n" for line in lines).encode(errors="surrogatepass")
    end = json.dumps({"rows": {}, "sha256": hashlib.sha256(said).hexdigest()})
    path.write_bytes(gzip.compress(said + end.encode() + b"\n"))
    return path


WRONG = [
    None, 7, -1, 2**70, 1.5, True, "", "x", "\0", "\ud800", [], {}, [[]], "0" * 300,
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-02-30T00:00:00+00:00",
    "2026-01-01T00:00:00", "00000000-0000-0000-0000-000000000000",
]  # fmt: skip


@pytest.fixture
def saved(root):
    "The lines of a backup with a bit of everything, but the last one."
    source = open_store(f"sqlite:///{root / 'source.db'}")
    add_traces(source, [Trace.model_validate(sum_trace(number)) for number in range(3)])
    make_run(source, root, 3)
    backup(source, root / "good.backup")
    source.close()
    return gzip.decompress((root / "good.backup").read_bytes()).decode().splitlines()[:-1]


def test_a_malformed_backup_is_refused_in_a_sentence(root, saved):
    draw = random.Random(12)
    rows = [number for number, line in enumerate(saved) if line.startswith("[")]
    forged = [
        [], saved[1:], [saved[0]], saved[:1] * 2, [*saved, saved[-1]], [*saved, "7"],
        [*saved, "[" * 5000 + "]" * 5000], ["[1]", *saved],
        [line for line in saved if line[0] == "["],
        [saved[0].replace("tunix_rt backup", "another"), *saved[1:]],
        [json.dumps({"format": "tunix_rt backup"}), *saved[1:]],
        [saved[0].replace(migrations.HEAD, "9999"), *saved[1:]],
        [*saved[: rows[0]], *saved[rows[0] + 1 :]],
    ]  # fmt: skip
    for _ in range(40):
        changed, number = list(saved), draw.choice(rows)
        row = json.loads(changed[number])
        row[draw.randrange(len(row))] = draw.choice(WRONG)
        changed[number] = json.dumps(row)
        forged.append(changed)
    refused = 0
    for number, each in enumerate(forged):
        path = forge(root / "forged.backup", each)
        try:
            check_backup(path)
            target = open_store(f"sqlite:///{root / f'{number}.db'}")
            restore(target, path)
            target.close()
        except StoreError as error:
            refused += 1
            assert "\n" not in str(error).strip()
    assert refused > 30  # the other changes are to a text, which may say anything


def test_rows_that_break_a_rule_are_refused_by_the_database_in_a_sentence(store, root, saved):
    runs = next(n for n, line in enumerate(saved) if line.startswith('{"table": "runs"'))
    for change in (saved[runs + 1], saved[runs + 1].replace('"completed"', '"asleep"', 1)):
        lines = [*saved[: runs + 1], change, *saved[runs + 1 :]]
        with pytest.raises(StoreError, match="can't be restored"):
            restore(store, forge(root / "forged.backup", lines))
    parents = {row[6] for row in map(json.loads, saved[runs + 1 : runs + 3])} - {None}
    orphan = [line for line in saved if not line.startswith(tuple(f'["{id}"' for id in parents))]
    with pytest.raises(StoreError, match="can't be restored"):
        restore(store, forge(root / "forged.backup", orphan))
    assert restore(store, root / "good.backup").rows["runs"] == 2


def test_a_damaged_sqlite_file_is_refused_in_a_sentence(root):
    address = f"sqlite:///{root / 'whole.db'}"
    whole = open_store(address)
    add_traces(whole, [Trace.model_validate(sum_trace(1))])
    whole.close()
    good, draw = (root / "whole.db").read_bytes(), random.Random(7)
    for number in range(120):
        bad = bytearray(good)
        if number < 100:
            bad[number] = draw.choice([0, 255, bad[number] ^ 1])
        else:
            del bad[draw.randrange(1, len(bad)) :]
        (root / "bad.db").write_bytes(bad)
        try:
            store = open_store(f"sqlite:///{root / 'bad.db'}")
            add_traces(store, [Trace.model_validate(sum_trace(2))])
            store.close()
        except StoreError as error:
            assert str(root / "bad.db") in str(error)
        for name in ("bad.db", "bad.db-wal", "bad.db-shm", "bad.db-journal"):
            (root / name).unlink(missing_ok=True)


@pytest.mark.parametrize("rows", [[], ["0001", "0002"], ["no version!"], [""], [None]])
def test_a_strange_version_row_is_refused_in_a_sentence(store, database_url, rows):
    with store.writing() as session:
        session.execute(text(f"DROP TABLE {migrations.VERSION_TABLE}"))
        session.execute(text(f"CREATE TABLE {migrations.VERSION_TABLE} (version_num VARCHAR(32))"))
        for row in rows:
            adding = text(f"INSERT INTO {migrations.VERSION_TABLE} VALUES (:row)")
            session.execute(adding, {"row": row})
    for act in (
        open_store,
        lambda url: upgrade(connect_store(url)),
        lambda url: current(connect_store(url)),
    ):
        with pytest.raises(StoreError, match="should hold their version"):
            act(database_url)


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_at_the_edge_of_the_calendar_is_refused(store, root, moment):
    run = start_run("train", root / "elsewhere/run", {"steps": 1})
    run.log.write_text("step 1\n")
    run.finish({})
    run.write_checksums()
    run.record(completed_at=moment)
    with pytest.raises(RunError, match="year"):
        import_run(store, run.folder)
    with pytest.raises(TunixError, match="in the years"):
        with store.writing() as session:
            session.add(RunRow(pipeline="train", completed_at=datetime.fromisoformat(moment)))
