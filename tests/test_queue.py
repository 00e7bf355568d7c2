"The queue on both databases: each run once, none lost, no word taken from a stranger."

import json
import shutil
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from sqlalchemy import select

from tunix_rt.core.errors import MissingError, PathError, RunError
from tunix_rt.core.settings import settings
from tunix_rt.jobs.leases import claim, expire_leases, record_result, renew, requeue
from tunix_rt.jobs.logs import CHUNK, LogStream, append_log, read_log, tail
from tunix_rt.jobs.queue import enqueue, get_queued, list_queued, request_cancel, tally_runs
from tunix_rt.runs.folder import read_run, start_run
from tunix_rt.store.engine import connect_store, open_store, upgrade
from tunix_rt.store.tables import RunRow, now
from tunix_rt.tracking.import_run import import_run

CHECKOUT = Path(__file__).resolve().parent.parent
WORKERS, JOBS = 8, 1000


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    "A root of its own, with a notebook that may be asked for."
    monkeypatch.setenv("TUNIX_RT_ROOT", str(tmp_path))
    settings.cache_clear()
    ask = "steps: int = 3  # How far\ndataset: str = ''  # Which\nrun_dir: str = ''  # Where"
    cells = [new_code_cell(ask, metadata={"tags": ["parameters"]})]
    nbformat.write(new_notebook(cells=cells), tmp_path / "count.ipynb")
    yield tmp_path
    settings.cache_clear()


def change(store, run_id, **fields):
    "Set fields of a row, as time would have done it."
    with store.writing() as session:
        row = session.get_one(RunRow, run_id)
        for name, value in fields.items():
            setattr(row, name, value)


def lapse(store, run_id):
    "Let a lease lapse."
    change(store, run_id, lease_until=now() - timedelta(seconds=1))


def waiting(store, **fields):
    return enqueue(store, "count.ipynb", **fields)


# Taking


def test_eight_workers_do_a_thousand_runs_once_each(store, database_url):
    early = now() - timedelta(hours=1)
    moments = [early + timedelta(milliseconds=number // 3) for number in range(JOBS)]
    with store.writing() as session:
        session.add_all(
            RunRow(id=uuid4(), pipeline="count.ipynb", queued_at=moment, available_at=moment)
            for moment in moments
        )
    start = threading.Barrier(WORKERS)

    def labour(number):
        mine, done = open_store(database_url), []
        start.wait()
        while taken := claim(mine, f"worker:{number}", 60.0):
            assert record_result(mine, taken, "completed", metrics={"by": number}, exit_code=0)
            done.append(taken.run)
        mine.close()
        return done

    with ThreadPoolExecutor(WORKERS) as pool:
        shares = list(pool.map(labour, range(WORKERS)))
    taken = Counter(run.id for share in shares for run in share)
    assert len(taken) == JOBS and set(taken.values()) == {1}
    assert all(share == sorted(share, key=lambda run: (run.queued_at, run.id)) for share in shares)
    (tally,) = tally_runs(store)
    assert (tally.status, tally.count) == ("completed", JOBS)
    with store.reading() as session:
        assert set(session.scalars(select(RunRow.attempts))) == {1}


def test_the_oldest_that_may_be_taken_comes_first(store):
    first, second, third = (waiting(store).id for _ in range(3))
    change(store, first, available_at=now() + timedelta(hours=1))
    change(store, third, queued_at=get_queued(store, second).queued_at)
    taken = [claim(store, "ada:1", 60.0).run.id for _ in range(2)]
    assert taken == sorted([second, third])
    assert claim(store, "ada:1", 60.0) is None
    change(store, first, available_at=now())
    assert claim(store, "ada:1", 60.0).run.id == first


def test_a_lapsed_lease_goes_to_another_and_the_first_can_say_nothing_more(store):
    run = waiting(store)
    old = claim(store, "ada:1", 60.0)
    assert expire_leases(store) == 0 and renew(store, old) == "running"
    lapse(store, run.id)
    assert expire_leases(store) == 1
    back = get_queued(store, run.id)
    assert back.status == "pending" and "ada:1 stopped renewing" in back.message
    assert claim(store, "bob:2", 60.0) is None  # it is given a pause
    change(store, run.id, available_at=now())
    new = claim(store, "bob:2", 60.0)
    assert (new.run.attempts, new.run.folder) == (2, old.run.folder)
    assert new.run.started_at == old.run.started_at

    assert renew(store, old) == "lost"
    assert not record_result(store, old, "completed", metrics={"loss": 0}, exit_code=0)
    assert not requeue(store, old, message="I have to go")
    with pytest.raises(RunError, match="its log is closed"):
        append_log(store, old, [("stdout", "late")])
    assert get_queued(store, run.id).status == "running"
    assert record_result(store, new, "completed", metrics={"loss": 1}, exit_code=0)
    assert record_result(store, new, "completed", metrics={"loss": 1}, exit_code=0)  # said twice
    assert get_queued(store, run.id).metrics == {"loss": 1} and renew(store, new) == "lost"


def test_a_silent_worker_that_comes_back_in_time_keeps_its_run(store):
    waiting(store)
    taken = claim(store, "ada:1", 60.0)
    lapse(store, taken.run.id)
    assert renew(store, taken) == "running"
    assert expire_leases(store) == 0
    assert get_queued(store, taken.run.id).lease_until > now() + timedelta(seconds=50)


def test_pauses_double_and_attempts_run_out(store):
    run, pauses = waiting(store, max_attempts=3), []
    for _ in range(3):
        change(store, run.id, available_at=now())
        taken = claim(store, "ada:1", 60.0)
        begun = now()
        assert requeue(store, taken, message="the kernel died")
        with store.reading() as session:
            pauses.append((session.get(RunRow, run.id).available_at - begun).total_seconds())
    assert 1.5 < pauses[0] < 2.5 and 3.5 < pauses[1] < 4.5
    ended = get_queued(store, run.id)
    assert (ended.status, ended.attempts, ended.exit_code) == ("failed", 3, 1)
    assert ended.message == "the kernel died. It was tried 3 times" and ended.completed_at


def test_a_worker_that_has_to_go_costs_no_attempt(store):
    run = waiting(store, max_attempts=1)
    for _ in range(3):
        taken = claim(store, "ada:1", 60.0)
        assert requeue(store, taken, message="stopped", counts=False, delay=0.0)
    assert (get_queued(store, run.id).status, get_queued(store, run.id).attempts) == ("pending", 0)


# Cancelling


def test_cancel_is_heard_by_whoever_holds_the_run(store):
    asleep, at_work, orphan, deserted = (waiting(store).id for _ in range(4))
    assert request_cancel(store, asleep).status == "cancelled"
    held = {run.run.id: run for run in iter(lambda: claim(store, "ada:1", 60.0), None)}
    assert set(held) == {at_work, orphan, deserted}

    assert request_cancel(store, at_work).status == "cancel_requested"
    assert request_cancel(store, at_work).status == "cancel_requested"
    assert renew(store, held[at_work]) == "cancel_requested"
    assert requeue(store, held[at_work], message="step 4 is saved", counts=False)

    lapse(store, orphan)
    assert request_cancel(store, orphan).status == "cancelled"
    assert not record_result(store, held[orphan], "completed")

    request_cancel(store, deserted)
    lapse(store, deserted)
    assert expire_leases(store) == 1

    for run_id in (asleep, at_work, orphan, deserted):
        run = get_queued(store, run_id)
        assert run.status == "cancelled" and run.ended and run.cancel_requested_at
        with pytest.raises(RunError, match="nothing to cancel"):
            request_cancel(store, run_id)
    assert claim(store, "bob:2", 60.0) is None


# Asking


def test_what_is_asked_is_checked_before_it_is_kept(store, root):
    shutil.copytree(CHECKOUT / "data/datasets/golden-v2", root / "data/datasets/golden-v2")
    wrong = [
        (RunError, {"parameters": {"steps": "many"}}),
        (RunError, {"parameters": {"step": 3}}),
        (RunError, {"parameters": {"run_dir": "/tmp/x"}}),
        (RunError, {"mode": "remote"}),
        (RunError, {"timeout_seconds": 0}),
        (RunError, {"timeout_seconds": float("nan")}),
        (RunError, {"max_attempts": 0}),
        (RunError, {"model_id": "a\0b"}),
        (RunError, {"request": {"note": "\ud800"}}),
        (RunError, {"dataset_key": "golden-v2", "parameters": {"dataset": "golden-v1"}}),
        (MissingError, {"dataset_key": "golden-v3"}),
        (MissingError, {"parent_run_id": uuid4()}),
    ]
    for error, fields in wrong:
        with pytest.raises(error):
            waiting(store, **fields)
    with pytest.raises(RunError, match="there is no pipeline"):
        enqueue(store, "trian")
    assert list_queued(store).runs == []

    run = waiting(store, dataset_key="golden-v2", request={"output_dir": "x", "n": 1.5})
    assert run.parameters == {"dataset": "golden-v2"}
    assert run.request == {"output_dir": "x", "n": 1.5}
    same = waiting(store, parameters={"dataset": "golden-v2"}, parent_run_id=run.id)
    assert same.dataset_key == "golden-v2" and same.parent_run_id == run.id
    with pytest.raises(RunError, match="already"):
        waiting(store, run_id=run.id)


def test_a_dry_run_reads_the_dataset_and_trains_nothing(store, root):
    data = root / "data/datasets/golden-v2"
    shutil.copytree(CHECKOUT / "data/datasets/golden-v2", data)
    dry = waiting(store, mode="dry-run", dataset_key="golden-v2")
    assert (dry.status, dry.exit_code, dry.folder) == ("completed", 0, None)
    assert "steps = 3" in dry.stdout and "traces, sha256" in dry.stdout
    with (data / "traces.jsonl").open("a") as file:
        file.write("\n")
    spoilt = waiting(store, mode="dry-run", dataset_key="golden-v2")
    assert (spoilt.status, spoilt.exit_code) == ("failed", 1)
    assert "has been changed" in spoilt.stderr
    assert claim(store, "ada:1", 60.0) is None
    assert not (root / "outputs/runs").exists()


def test_lists_narrow_and_page(store):
    runs = [waiting(store, model_id=f"m{number % 2}") for number in range(5)]
    claim(store, "ada:1", 60.0)
    newest = [run.id for run in reversed(runs)]
    page = list_queued(store, limit=2)
    assert [run.id for run in page.runs] == newest[:2] and page.next_offset == 2
    page = list_queued(store, limit=2, offset=4)
    assert [run.id for run in page.runs] == newest[4:] and page.next_offset is None
    assert [run.id for run in list_queued(store, status="running").runs] == newest[4:]
    assert len(list_queued(store, model_id="m1", status="pending", mode="local").runs) == 2
    with pytest.raises(RunError, match="choose one of"):
        list_queued(store, status="done")


# Logs


def printed(store, run_id):
    "Read a whole log as a client does, by its last number."
    found, since = [], 0
    while lines := read_log(store, run_id, since, limit=7):
        assert [line.seq for line in lines] == list(range(since + 1, since + 1 + len(lines)))
        found, since = found + lines, lines[-1].seq
    return found


def test_bursts_and_endless_lines_arrive_whole_while_somebody_reads(store):
    run = waiting(store)
    taken = claim(store, "ada:1", 60.0)
    burst = [f"line {number}\n" for number in range(50_000)]
    endless = ["x" * 2**20 + "\n", "ü" * 2**20, "\n"]
    stream, seen, over = LogStream(store, taken), [], threading.Event()

    def follow():
        since = 0
        while lines := read_log(store, run.id, since) or not over.is_set():
            if lines is not True:
                seen.extend(lines)
                since = lines[-1].seq
            time.sleep(0.02)

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(follow)
        for text in burst + endless + burst:
            stream.write("stdout", text)
        stream.write("stderr", "hot\n")
        assert stream.close()
        over.set()
        reader.result()
    lines = printed(store, run.id)
    assert seen == lines and max(len(line.chunk) for line in lines) <= CHUNK
    text = "".join(line.chunk for line in lines if line.stream == "stdout")
    assert text == "".join(burst + endless + burst)
    assert lines[-1].chunk == "hot\n" and get_queued(store, run.id).last_seq == lines[-1].seq
    assert tail(store, run.id, "stdout").endswith("line 49999\n")


def test_what_no_database_takes_is_replaced_and_the_attempts_share_one_log(store):
    run = waiting(store)
    first = claim(store, "ada:1", 60.0)
    odd = [("stdout", "a\0b\ud800c"), ("stderr", "€"), ("stderr", "")]
    assert append_log(store, first, odd) == 2
    assert append_log(store, first, []) == 2
    assert append_log(store, first, [("stdout", "twice?")], after=1) == 2  # they were kept
    requeue(store, first, message="stopped", counts=False, delay=0.0)
    second = claim(store, "bob:2", 60.0)
    stream = LogStream(store, second)
    stream.write("stdout", "on\n")
    assert stream.close()
    lines = [(line.seq, line.stream, line.chunk) for line in printed(store, run.id)]
    assert lines == [(1, "stdout", "a\ufffdb\ufffdc"), (2, "stderr", "€"), (3, "stdout", "on\n")]
    with pytest.raises(MissingError):
        append_log(store, uuid4(), [("stdout", "?")])
    assert read_log(store, uuid4()) == []


def test_a_postgres_killed_in_the_middle_loses_and_doubles_nothing(own_postgres):
    store = connect_store(own_postgres.address)
    upgrade(store)
    waiting(store)
    taken = claim(store, "ada:1", 60.0)
    stream, lines = LogStream(store, taken), [f"line {number}\n" for number in range(60_000)]
    for number, line in enumerate(lines):
        stream.write("stdout", line)
        if number == 30_000:
            own_postgres.kill()
    own_postgres.start()
    assert stream.close(60)
    assert "".join(line.chunk for line in printed(store, taken.run.id)) == "".join(lines)
    assert record_result(store, taken, "completed", exit_code=0)
    store.close()


# Arrivals


@pytest.fixture
def elsewhere(root):
    "A completed run in a folder that is not ours, and a zip of it."
    run = start_run("train", root / "elsewhere" / "run", {"steps": 3})
    run.model.mkdir()
    (run.model / "config.json").write_text('{"layers": 4}')
    run.log.write_bytes(b"step 1\nstep 2\0\xff\n")
    run.finish({"loss": 0.25})
    run.write_checksums()
    return run


def zipped(run):
    return shutil.make_archive(str(run.folder), "zip", run.folder.parent, run.folder.name)


def test_a_run_arrives_once_however_often_it_is_sent(store, root, elsewhere):
    path = zipped(elsewhere)
    with ThreadPoolExecutor(4) as pool:
        arrived = list(pool.map(lambda _: import_run(store, path), range(4)))
    arrived += [import_run(store, elsewhere.folder), import_run(store, arrived[0].path)]
    assert arrived == [arrived[0]] * 6 and len(list_queued(store).runs) == 1
    run = arrived[0]
    assert str(run.id) == elsewhere.run_id and run.metrics == {"loss": 0.25}
    assert run.stdout == "step 1\nstep 2\ufffd\ufffd\n" == printed(store, run.id)[0].chunk
    assert [folder.name for folder in (root / "outputs/runs").iterdir()] == [run.path.name]
    shutil.rmtree(run.path)  # a lost folder comes back to its place
    import_run(store, path)
    assert (run.path / "model/config.json").read_text() == '{"layers": 4}'


def test_an_import_cut_between_its_copy_and_its_row_is_completed(store, root, elsewhere):
    shutil.copytree(elsewhere.folder, root / "outputs/runs/run")
    assert import_run(store, root / "outputs/runs/run").folder == "outputs/runs/run"
    read_run(root / "outputs/runs/run").report.write_text("added later")
    read_run(root / "outputs/runs/run").write_checksums()
    assert import_run(store, zipped(elsewhere)).folder == "outputs/runs/run"


def test_a_run_that_was_changed_or_is_at_work_here_does_not_arrive(store, root, elsewhere):
    import_run(store, elsewhere.folder)
    elsewhere.record(results={"loss": 0.01})
    with pytest.raises(RunError, match="One of them was changed"):
        import_run(store, elsewhere.folder)
    other = start_run("train", root / "elsewhere" / "other", {}, run_id=str(waiting(store).id))
    other.metrics_path.write_text("{}\n")
    other.finish({})
    with pytest.raises(RunError, match="is pending here"):
        import_run(store, other.folder)


def test_what_cannot_be_trusted_leaves_nothing_behind(store, root, elsewhere):
    secret = root / "secret.txt"
    secret.write_text('{"layers": 4}')
    (elsewhere.model / "config.json").unlink()
    (elsewhere.model / "config.json").symlink_to(secret)
    with pytest.raises(PathError, match="leads outside"):
        import_run(store, elsewhere.folder)
    (elsewhere.model / "config.json").unlink()
    (elsewhere.model / "config.json").write_text('{"layers": 5}')
    whole = Path(zipped(elsewhere))
    with pytest.raises(RunError, match="not the file that the run left"):
        import_run(store, whole)
    (root / "half.zip").write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(RunError, match="cannot be read as a zip"):
        import_run(store, root / "half.zip")
    facts = json.loads((elsewhere.folder / "run.json").read_text())
    for change in ({"run_id": "1"}, {"pipeline": "x" * 200}, {"files": {}}, {"files": 3}):
        (elsewhere.folder / "run.json").write_text(json.dumps(facts | change))
        with pytest.raises(RunError, match="cannot be used"):
            import_run(store, elsewhere.folder)
    with pytest.raises(PathError, match="neither a folder nor a zip"):
        import_run(store, root / "nothing.zip")
    with pytest.raises(RunError, match="not a run folder"):
        import_run(store, root)
    assert list_queued(store).runs == [] and not list((root / "outputs/runs").glob("*"))
