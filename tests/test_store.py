"The store on both databases: what it promises, and what it refuses."

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from databases import empty_database, new_database
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select, text

from tunix_rt.core.errors import DatasetError, MissingError, StoreError, TraceError
from tunix_rt.data.datasets import build_dataset
from tunix_rt.data.selection import matches
from tunix_rt.store import migrations
from tunix_rt.store.backup import backup, check_backup, restore, tables
from tunix_rt.store.datasets import build_from_store, ingest_into_store
from tunix_rt.store.engine import connect_store, current, downgrade, open_store, ready, upgrade
from tunix_rt.store.scan import conditions, iterate_traces
from tunix_rt.store.tables import Base, ModelRow, RunRow, ScoreRow, TraceRow, TraceTally, now
from tunix_rt.store.traces import (
    add_score,
    add_traces,
    count_traces,
    get_trace,
    get_traces,
    insert_traces,
    latest_score,
    list_traces,
)
from tunix_rt.traces.schema import Trace

UNHURRIED = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def trace(prompt, answer="4", meta=None, steps=("2 + 2 = 4",)) -> Trace:
    moves = [{"i": i, "type": "step", "content": content} for i, content in enumerate(steps)]
    fields = {"prompt": prompt, "final_answer": answer, "meta": meta, "steps": moves}
    return Trace.model_validate(fields)


def prompts(store, **filters):
    return [found.trace.prompt for found in iterate_traces(store, filters)]


# Versions of the tables


def test_tables_go_up_and_down(store):
    assert current(store) == migrations.HEAD
    add_traces(store, [trace("kept?")])
    downgrade(store, "base")
    assert current(store) is None
    with pytest.raises(StoreError, match="tunix-rt db upgrade"):
        ready(store)
    upgrade(store)
    ready(store)
    assert count_traces(store) == 0


def test_each_version_of_the_tables_keeps_the_traces(store):
    ids = [stored.id for stored in add_traces(store, [trace("once"), trace("twice")])]
    copy = add_traces(store, [trace("twice")])[0].id
    for version in reversed(migrations.KNOWN):
        downgrade(store, version)
        assert current(store) == version
    upgrade(store)
    assert [found.id for found in get_traces(store, [*ids, copy])] == [*ids, copy]
    same = list_traces(store, fingerprint=trace("twice").fingerprint).traces
    assert [stored.id for stored in same] == [copy, ids[1]]
    assert list_traces(store, fingerprint="no hash").traces == []


INDEX_OF_WORDS = {"trace_words", "trace_arrivals"} | {  # Made by SQL of each database's own
    f"trace_words_{part}" for part in ("config", "content", "data", "docsize", "idx")
}


def test_migrations_make_the_tables_that_the_code_describes(store):
    with store.reading() as session:
        options = {
            "version_table": migrations.VERSION_TABLE,
            "compare_type": True,
            "include_name": lambda name, kind, _: not (kind == "table" and name in INDEX_OF_WORDS),
        }
        context = MigrationContext.configure(session.connection(), opts=options)
        assert compare_metadata(context, Base.metadata) == []


def test_known_versions_are_those_that_there_are():
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    steps = [step.revision for step in scripts.walk_revisions()]
    assert tuple(reversed(steps)) == migrations.KNOWN
    assert scripts.get_current_head() == migrations.HEAD


def test_an_empty_postgres_gets_its_tables_once():
    with empty_database() as address, ThreadPoolExecutor(4) as threads:
        for store in threads.map(open_store, [address] * 4):  # four servers start at once
            with store.reading() as session:
                assert session.scalar(select(func.count()).select_from(TraceRow)) == 0
            store.close()


def test_a_newer_database_is_refused(store, database_url):
    with store.writing() as session:
        session.execute(text(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(StoreError, match="newer than this code"):
        open_store(database_url)


def test_six_processes_make_one_sqlite_file(tmp_path):
    address = f"sqlite:///{tmp_path / 'shared.db'}"
    code = "import sys; from tunix_rt.store.engine import open_store; open_store(sys.argv[1])"
    started = [subprocess.Popen([sys.executable, "-c", code, address]) for _ in range(6)]
    assert [process.wait(120) for process in started] == [0] * 6
    ready(connect_store(address))


# Reading and writing


def test_readers_cannot_write(store):
    with pytest.raises(Exception, match="read-?only"):
        with store.reading() as session:
            session.add(ModelRow(name="smuggled"))
            session.flush()
    with store.writing() as session:  # the connection is not spoilt for writers
        session.add(ModelRow(name="declared"))
    with store.reading() as session:
        assert session.scalars(select(ModelRow.name)).all() == ["declared"]


def test_reading_ends_when_its_time_is_over(store):
    "What one client asks keeps no connection for good."
    forever = text(
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 2000000000)"
        " SELECT count(*) FROM n"
    )
    with pytest.raises(StoreError, match="longer than 0.1 s and was stopped"):
        with store.reading(0.1) as session:
            session.scalar(forever)
    with store.reading() as session:
        assert session.scalar(text("SELECT 1")) == 1
        if store.dialect == "postgresql":
            assert session.scalar(text("SHOW statement_timeout")) == "0"


def test_a_failed_block_leaves_nothing(store):
    with pytest.raises(ZeroDivisionError):
        with store.writing() as session:
            insert_traces(session, [trace("half done")])
            raise ZeroDivisionError
    assert count_traces(store) == 0


def test_an_unreachable_postgres_is_named_without_its_password():
    store = connect_store("postgresql://team:secret@127.0.0.1:9/tunix")
    with pytest.raises(StoreError) as refusal:
        ready(store)
    assert "127.0.0.1:9" in str(refusal.value) and "secret" not in str(refusal.value)


def test_a_second_process_waits_for_the_first_one(tmp_path):
    address = f"sqlite:///{tmp_path / 'shared.db'}"
    store = open_store(address)
    code = (
        "import sys; from tunix_rt.store.engine import open_store\n"
        "from tunix_rt.store.tables import ModelRow\n"
        "with open_store(sys.argv[1]).writing() as s: s.add(ModelRow(name='other'))"
    )
    with store.writing() as session:
        session.add(ModelRow(name="first"))
        other = subprocess.Popen([sys.executable, "-c", code, address])
        time.sleep(3)
        assert other.poll() is None
    assert other.wait(60) == 0
    store.close()


# Traces


NASTY = [
    "\\N",
    "tab\tnew\nline\rreturn",
    "back\\slash \\n \\. \\",
    "naïve café 数学 😀 \u202e \u2028",
    "'; DROP TABLE traces; --",
    "<script>alert(1)</script>",
    "%s %(x)s {0} ?",
    " ",
]


@pytest.mark.parametrize("said", NASTY)
def test_any_text_comes_back(store, said):
    meta = {"source": said, "category": said, said: [said, {said: said}]}
    told = trace(said, answer=said, steps=[said, said], meta=meta)
    (stored,) = add_traces(store, [told])
    assert get_trace(store, stored.id).trace == told
    assert [each.id for each in list_traces(store, source=said, category=said).traces] == [
        stored.id
    ]
    assert [each.id for each in list_traces(store, text=said).traces] == [stored.id]
    assert prompts(store, source=said, category=said) == [said]


plain = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | plain
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3)
)


@UNHURRIED
@given(meta=st.none() | st.dictionaries(plain, values, max_size=4))
def test_any_meta_comes_back(store, meta):
    (stored,) = add_traces(store, [trace("?", meta=meta)])
    back = get_trace(store, stored.id).trace.meta
    assert json.dumps(back, sort_keys=True) == json.dumps(meta, sort_keys=True)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, 2**63, -(2**63) - 1, "\0", "\ud800", {1: 2}, {"x": {3}}]
)
def test_what_no_database_keeps_is_refused_on_both(store, value):
    odd = trace("odd").model_copy(update={"meta": {"odd": value}})
    with pytest.raises(TraceError, match="meta"):
        add_traces(store, [trace("even"), odd])
    assert count_traces(store) == 0


def test_a_deep_value_is_refused_on_both(store):
    deep = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(TraceError, match="nested"):
        add_traces(store, [trace("odd").model_copy(update={"meta": {"deep": deep}})])


def test_a_category_of_a_megabyte_does_not_break_an_index(store):
    novel = "".join(uuid4().hex for _ in range(30_000))
    (stored,) = add_traces(store, [trace("long", meta={"category": novel, "source": novel})])
    assert list_traces(store, category=novel).traces[0].id == stored.id
    assert prompts(store, category=novel, source=novel) == ["long"]
    assert prompts(store, category=novel[:-1]) == []


def test_copies_have_names_of_their_own(store):
    first, second = trace("same", meta={"n": 1}), trace("same", meta={"n": 2})
    ids = [stored.id for stored in add_traces(store, [first, second, first])]
    ids += [stored.id for stored in add_traces(store, [second])]
    assert ids[0] == first.id and len(set(ids)) == 4
    assert [found.trace.meta["n"] for found in get_traces(store, ids)] == [1, 2, 1, 2]


def test_eight_clients_bring_the_same_traces_at_once(store):
    batch = [trace(f"question {number}") for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: add_traces(store, batch), range(8)))
    ids = [stored.id for answer in answers for stored in answer]
    assert len(set(ids)) == count_traces(store) == 320
    assert {each.id for each in batch} <= set(ids)
    for answer in answers:
        found = get_traces(store, [stored.id for stored in answer])
        assert [each.trace for each in found] == batch


def test_pages_are_exact_while_the_numbers_have_gaps(store):
    ids = []
    for part in range(7):
        new = [trace(f"{part} {number}") for number in range(400)]
        with pytest.raises(ZeroDivisionError):
            with store.writing() as session:
                insert_traces(session, new)
                raise ZeroDivisionError
        ids += [stored.id for stored in add_traces(store, new)]
    with store.writing() as session:
        session.execute(delete(TraceRow).where(TraceRow.id.in_(ids[1000:1300])))
    ids = list(reversed(ids[:1000] + ids[1300:]))
    assert count_traces(store) == len(ids)
    for offset in (0, 990, 1000, 1001, 1499, 1500, 1501, 2000, 2480, 2499, 2500, 10**9):
        page = list_traces(store, limit=20, offset=offset)
        assert [stored.id for stored in page.traces] == ids[offset : offset + 20]
        assert (page.next_offset is None) == (offset + 20 >= len(ids))


def test_pages_are_exact_while_the_numbers_have_no_gaps(store):
    ids = []
    for part in range(3):
        new = [trace(f"{part} {number}") for number in range(1000)]
        ids += [stored.id for stored in add_traces(store, new)]
    ids.reverse()
    for offset in (0, 999, 1000, 1001, 1002, 1500, 1990, 2000, 2001, 2002, 2979, 2990, 2999, 3000):
        page = list_traces(store, limit=20, offset=offset)
        assert [stored.id for stored in page.traces] == ids[offset : offset + 20]
        assert (page.next_offset is None) == (offset + 20 >= len(ids))


def test_the_tally_holds_while_writers_meet(store):
    def work(number):
        for part in range(6):
            add_traces(store, [trace(f"{number} {part} {each}") for each in range(number + 1)])

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    with store.reading() as session:
        counted = session.scalar(select(func.count()).select_from(TraceRow))
        blocks = dict(
            session.execute(
                select(TraceTally.block, func.sum(TraceTally.traces)).group_by(TraceTally.block)
            ).all()
        )
        numbers = session.scalars(select(TraceRow.number)).all()
    assert count_traces(store) == counted == 6 * 21
    assert blocks == {b: sum(n // 1000 == b for n in numbers) for b in blocks}


def test_a_missing_trace_is_told_from_a_broken_store(store):
    with pytest.raises(MissingError, match="no trace"):
        get_trace(store, uuid4())
    with pytest.raises(MissingError, match="no trace"):
        add_score(store, uuid4(), score=1.0, criteria="baseline", details={})


def test_the_newest_score_counts(store):
    (stored,) = add_traces(store, [trace("scored")])
    assert latest_score(store, stored.id) is None
    for score in (10.0, 20.0):
        add_score(store, stored.id, score=score, criteria="baseline", details={"n": score})
    add_score(store, stored.id, score=99.0, criteria="other", details={})
    assert latest_score(store, stored.id).score == 20.0
    with store.writing() as session:
        session.execute(delete(TraceRow))
    with store.reading() as session:
        assert session.scalar(select(func.count()).select_from(ScoreRow)) == 0


# Filters


few = st.sampled_from(["a", "b", "a b", 'q"', "", "0", "é", "a,b", "{a}", "NULL"])
small = st.none() | st.booleans() | st.sampled_from([0, 1, 1.0, 3, 0.5, -0.0, 1e300, 2**60]) | few
metas = st.dictionaries(
    few, small | st.dictionaries(few, small, max_size=2) | st.lists(small, max_size=2), max_size=3
)
names = st.sampled_from(
    ["a", "b", "a.b", "meta.a", "a.a", 'q"', "source", "category", "", "0", "é.a", "a,b", "{a}"]
    + ["NULL", "{a}.a"]
)
wishes = st.dictionaries(names, small | st.lists(small, max_size=2), max_size=2)


@UNHURRIED
@given(
    told=st.lists(st.none() | metas, min_size=1, max_size=8), wished=st.lists(wishes, max_size=8)
)
def test_filters_mean_the_same_in_the_database(store, told, wished):
    with store.writing() as session:
        session.execute(delete(TraceRow))
    traces = [trace(f"{number}", meta=meta) for number, meta in enumerate(told)]
    add_traces(store, traces)
    for filters in wished:
        expected = [each.prompt for each in traces if matches(each, filters)]
        assert prompts(store, **filters) == expected, filters


def test_large_numbers_are_compared_exactly(store):
    add_traces(store, [trace("large", meta={"n": 2**60}), trace("larger", meta={"n": 2**60 + 1})])
    assert prompts(store, n=float(2**60)) == ["large"]
    assert prompts(store, n=[2**60 + 1, 3]) == ["larger"]


def test_text_is_found_in_either_case(store):
    add_traces(store, [trace("ÜBER den Wolken")])
    assert len(list_traces(store, text="über DEN").traces) == 1


def test_a_filter_is_the_databases_work(store):
    add_traces(
        store, [trace(f"{n}", meta={"level": n % 10, "source": "ab"[n % 2]}) for n in range(50)]
    )
    with store.reading() as session:
        for filters in ({"level": 3}, {"source": "a"}, {"meta.level": [3, 4.0, "x"]}):
            asked = conditions(store.dialect, filters)
            found = session.scalar(select(func.count()).select_from(TraceRow).where(*asked))
            assert found == len(prompts(store, **filters))


# Datasets


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"limit": 5},
        {"limit": 1000},
        {"filters": {"kind": "odd"}, "limit": 4},
        {
            "filters": {"kind": ["odd", "even"]},
            "selection_strategy": "random",
            "seed": 3,
            "limit": 9,
        },
        {"filters": {"copy": True}, "limit": 3},
    ],
)
def test_the_same_dataset_from_store_and_from_memory(store, tmp_path, arguments):
    told = [trace(f"{n}", meta={"kind": "odd" if n % 2 else "even"}) for n in range(30)]
    told += [trace(f"{n}", meta={"kind": "odd", "copy": True}) for n in (3, 4, 5, 6)]
    told += [trace(f"{n}", meta={"kind": "even", "copy": True}) for n in (5, 28, 100)]
    for part in range(0, len(told), 10):
        add_traces(store, told[part : part + 10])
    same = {"name": "same", "version": "1", "created_at": now(), **arguments}
    stored = build_from_store(store, home=tmp_path / "stored", **same)
    direct = build_dataset(told, home=tmp_path / "direct", **same)
    assert stored.manifest == direct.manifest
    assert (stored.folder / "traces.jsonl").read_bytes() == (
        direct.folder / "traces.jsonl"
    ).read_bytes()


def test_building_takes_the_memory_of_a_few_traces(store, tmp_path):
    for part in range(20):
        fat = [f"{part} {number} " + "x" * 15_000 for number in range(20)]
        add_traces(store, [trace(each, steps=[each] * 10) for each in fat])  # 66 MB in all
    tracemalloc.start()
    build_from_store(store, name="fat", version="1", home=tmp_path)
    build_from_store(store, name="fat", version="2", limit=300, home=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


def write_lines(path, lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))


def test_a_file_is_taken_in_whole_or_not_at_all(store, tmp_path):
    good = [trace(f"{number}").model_dump_json() for number in range(2500)]
    write_lines(tmp_path / "in" / "good.jsonl", good)
    done = ingest_into_store(store, "good.jsonl", source_name="here", folder=tmp_path / "in")
    assert len(done) == done.intake.accepted == count_traces(store) == 2500
    assert [f.trace.prompt for f in get_traces(store, list(done.trace_ids()))] == [
        str(number) for number in range(2500)
    ]

    write_lines(tmp_path / "in" / "bad.jsonl", [*good[:1200], '{"prompt": NaN}', "{", *good[1200:]])
    with pytest.raises(DatasetError, match=r"bad.jsonl:1201(.|\n)*bad.jsonl:1202"):
        ingest_into_store(store, "bad.jsonl", source_name="here", folder=tmp_path / "in")
    assert count_traces(store) == 2500

    done = ingest_into_store(
        store, "bad.jsonl", source_name="again", folder=tmp_path / "in", skip_invalid=True
    )
    assert (len(done), done.intake.bad, count_traces(store)) == (2500, 2, 5000)
    assert len(set(done.trace_ids()) & {found.id for found in iterate_traces(store)}) == 2500


# Losing nothing


ADDING = """
import sys, itertools
from tunix_rt.store.engine import open_store
from tunix_rt.store.traces import add_traces
from tunix_rt.traces.schema import Trace
store = open_store(sys.argv[1])
rest = {"steps": [{"i": 0, "type": "s", "content": "x" * 1000}], "final_answer": "y"}
for n in itertools.count():
    batch = [Trace.model_validate({"prompt": f"{n} {k}", **rest}) for k in range(50)]
    print(*(stored.id for stored in add_traces(store, batch)), flush=True)
"""


@pytest.mark.parametrize("patience", [1.0, 1.6, 2.3])
def test_killed_after_the_answer_nothing_is_lost(store, database_url, patience):
    command = [sys.executable, "-c", ADDING, database_url]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    first = writer.stdout.readline()
    time.sleep(patience - 1)
    writer.kill()
    lines = [first, *writer.stdout.read().splitlines(keepends=True)]
    confirmed = [UUID(word) for line in lines if line.endswith("\n") for word in line.split()]
    get_traces(store, confirmed)
    total = count_traces(store)
    assert total % 50 == 0 and len(confirmed) <= total <= len(confirmed) + 50


def test_postgres_killed_in_mid_batch_keeps_what_it_confirmed(own_postgres):
    server = own_postgres
    store = connect_store(server.address)
    upgrade(store)
    confirmed = []

    def work():
        number = 0
        while True:
            batch = [trace(f"{number} {each}", answer="x" * 2000) for each in range(200)]
            try:
                confirmed.extend(stored.id for stored in add_traces(store, batch))
            except StoreError:
                return
            number += 1

    worker = threading.Thread(target=work)
    worker.start()
    while len(confirmed) < 1000:
        time.sleep(0.01)
    server.kill()
    worker.join(60)
    server.start()
    get_traces(store, confirmed)
    total = count_traces(store)
    assert total % 200 == 0 and len(confirmed) <= total <= len(confirmed) + 200
    add_traces(store, [trace("after the crash")])
    store.close()


def test_a_connection_that_died_while_it_rested_is_replaced(monkeypatch):
    monkeypatch.setattr("tunix_rt.store.engine.RESTED", 0.2)
    with new_database() as address:
        store, other = open_store(address), open_store(address)
        with store.reading() as session:
            number = session.scalar(text("SELECT pg_backend_pid()"))
        with other.reading() as session:
            assert session.scalar(text("SELECT pg_terminate_backend(:number)"), {"number": number})
        time.sleep(0.3)
        assert count_traces(store) == 0
        for each in (store, other):
            each.close()


def test_killed_in_mid_ingest_nothing_is_seen(store, database_url, tmp_path):
    write_lines(tmp_path / "in.jsonl", (trace(f"{n}").model_dump_json() for n in range(20_000)))
    code = (
        "import sys; from tunix_rt.store.engine import open_store\n"
        "from tunix_rt.store import datasets\n"
        "first = datasets.insert_rows\n"
        "def slow(session, rows):\n"
        "    given = first(session, rows); print('wrote', flush=True); return given\n"
        "datasets.insert_rows = slow\n"
        "datasets.ingest_into_store(open_store(sys.argv[1]), sys.argv[2], source_name='x')"
    )
    command = [sys.executable, "-c", code, database_url, str(tmp_path / "in.jsonl")]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for _ in range(3):
        assert writer.stdout.readline() == "wrote\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert count_traces(store) == 0 and prompts(store) == []
    add_traces(store, [trace("and it goes on")])


# Backup


def everything(store):
    with store.reading() as session:
        return {
            table.name: [
                tuple(row) for row in session.execute(select(table).order_by(*table.primary_key))
            ]
            for table in tables()
        }


def test_a_backup_moves_to_either_database(store, tmp_path):
    ids = [s.id for s in add_traces(store, [trace(said, meta={"n": 1e300}) for said in NASTY] * 20)]
    add_score(store, ids[3], score=0.1 + 0.2, criteria="baseline", details={"why": NASTY})
    parent, child = (
        RunRow(id=UUID(int=9), pipeline="train"),
        RunRow(id=UUID(int=1), pipeline="train"),
    )
    with store.writing() as session:
        session.add(parent)
        session.flush()
        child.parent_run_id = parent.id
        session.add(child)
    saved = backup(store, tmp_path / "all.backup")
    assert saved.rows["traces"] == 160 and check_backup(tmp_path / "all.backup").rows == saved.rows

    with empty_database() as address:
        targets = [connect_store(address), open_store(f"sqlite:///{tmp_path / 'other.db'}")]
        upgrade(targets[0])
        for target in targets:
            restore(target, tmp_path / "all.backup")
            assert everything(target) == everything(store)
            assert count_traces(target) == 160
            newer = add_traces(target, [trace("goes on counting")])
            assert list_traces(target).traces[0].id == newer[0].id
            with pytest.raises(StoreError, match="empty one"):
                restore(target, tmp_path / "all.backup")
            target.close()


def test_a_backup_is_of_one_moment(store, tmp_path):
    stop = threading.Event()

    def work():
        number = 0
        while not stop.is_set():
            number += 1
            (stored,) = add_traces(store, [trace(f"{number}", answer="x" * 5000)])
            add_score(store, stored.id, score=1.0, criteria="baseline", details={})

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for number in range(4):
            time.sleep(0.1)
            saved = backup(store, tmp_path / f"{number}.backup")
            assert saved.rows["scores"] <= saved.rows["traces"] <= saved.rows["scores"] + 1
    finally:
        stop.set()
        worker.join()
    target = open_store(f"sqlite:///{tmp_path / 'other.db'}")
    restore(target, tmp_path / "3.backup")  # its foreign keys hold
    target.close()
