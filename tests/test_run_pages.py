"Runs as people look at them: table, comparison, one run, predictions, documents in frames."

import json
import re
import time
from contextlib import closing
from uuid import uuid4

import pytest
from serving import make_run, serving
from test_pages import BROWSER, EVIL, HIT, start_by_hand

from tunix_rt.jobs.logs import append_log
from tunix_rt.jobs.queue import enqueue
from tunix_rt.runs.folder import NOTES
from tunix_rt.store.engine import open_store
from tunix_rt.store.tables import EvaluationRow, RunRow, RunSummaryRow, now
from tunix_rt.tracking.evaluations import evaluate_run
from tunix_rt.tracking.import_run import import_run
from tunix_rt.tracking.run_table import annotate, list_views, load_view


@pytest.fixture
def own(root):
    "A store of our own."
    with closing(open_store(f"sqlite:///{root / 'pages.db'}")) as store:
        yield store


@pytest.fixture
def two(own, root):
    "Two trained models, evaluated on the same eight questions."
    runs = [make_run(own, root, right, model_id=f"knows-{right}") for right in (8, 1)]
    for run in runs:
        evaluate_run(own, run)
    return runs


def get(client, path: str, status: int = 200) -> str:
    "A page, as a browser gets it."
    page = client.get(path, headers=BROWSER)
    assert page.status_code == status, (path, page.text[:2000])
    assert "<script>" not in page.text and "<img src=x" not in page.text
    return page.text


def rows_in(page: str) -> list[str]:
    "Ids of the runs in the table, in order."
    return re.findall(r'name="run" value="([0-9a-f-]{36})"', page)


def test_runs_are_filtered_sorted_and_shown_by_any_value(own, two):
    good, bad = map(str, two)
    with serving(own) as client:
        page = get(client, "/runs")
        assert len(rows_in(page)) == 4 and "100.0" in page and "12.5" in page
        narrowed = "/runs?filter=score+%3E+50+and+pipeline+%3D+train"
        assert rows_in(get(client, narrowed)) == [good]
        assert rows_in(get(client, "/runs?filter=pipeline=train&sort=score")) == [bad, good]
        assert rows_in(get(client, "/runs?filter=pipeline=train&sort=-score")) == [good, bad]
        page = get(client, "/runs?columns=learning_rate&columns=first_loss&sort=-first_loss")
        heads = re.findall(r'aria-sort="(\w+)"><a href="([^"]+)" title="Sort by ([^"]+)"', page)
        assert [(name, turned) for turned, _, name in heads] == [
            ("learning_rate", "none"),
            ("first_loss", "descending"),
        ]
        assert all(
            "columns=learning_rate" in to and "columns=first_loss" in to for _, to, _ in heads
        )
        assert 'data-label="learning_rate"' in page and "2.5" in page
        assert get(client, "/runs?status=odd", 400) and get(client, "/runs?status=pending")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("score >", "needs a value at character 8"),
        ("score > 50 or", "needs the name of a parameter or a metric"),
        ("(score > 50", "a closing bracket"),
        ("scor > 50", "did you mean score"),
        (f"name = {EVIL}", "the filter"),
        ("score > fast", "has no order with"),
        ("((((" * 200, "inside each other"),
        ("__import__('os').system('x')", "the filter needs one of"),
        ("score > 50; drop table runs", "the filter needs and, or, or the end"),
    ],
)
def test_a_malformed_filter_is_refused_in_a_sentence(own, two, text, says):
    with serving(own) as client:
        page = client.get("/runs", params={"filter": text}, headers=BROWSER)
        assert page.status_code == 400 and says in page.text
        assert 'role="alert"' in page.text and "<script>" not in page.text


def test_names_tags_and_notes_survive(own, two, root, tmp_path):
    good = two[0]
    with serving(own) as client:
        form = {"name": EVIL[:100], "tags": f"best, {EVIL[:50]}", "note": f"It falls.\r\n{EVIL}"}
        assert client.post(f"/runs/{good}/about", data=form).status_code == 200
        for path in ("/runs", f"/runs/{good}", f"/runs/compare?run={good}", "/leaderboard", "/"):
            assert "&lt;script&gt;" in get(client, path), path
        assert rows_in(get(client, "/runs?filter=tags=best")) == [str(good)]
        refused = client.post(f"/runs/{good}/about", data={"name": "a\u202eb"}, headers=BROWSER)
        assert refused.status_code in (400, 422)
        assert client.post(f"/runs/{uuid4()}/about", data=form).status_code == 404
    with closing(open_store(f"sqlite:///{root / 'pages.db'}")) as later:  # after a restart
        view = load_view(later, good)
        assert view.notes.tags[0] == "best" and view.notes.note == f"It falls.\n{EVIL}"
    folder = root / "outputs" / "runs" / "train-8"
    assert json.loads((folder / NOTES).read_text())["tags"][0] == "best"
    with closing(open_store(f"sqlite:///{root / 'other.db'}")) as other:  # the database was lost
        import_run(other, folder)
        assert load_view(other, good).notes == view.notes


def test_a_program_names_and_tags_a_run(own, two):
    path = f"/api/tunix/runs/{two[0]}/notes"
    with serving(own) as client:
        told = client.patch(path, json={"tags": ["best", "best", " "], "note": "It falls."})
        assert told.json() == {
            "run_id": str(two[0]), "name": None, "tags": ["best"], "note": "It falls.",
        }  # fmt: skip
        assert client.patch(path, json={"name": "first"}).json()["tags"] == ["best"]
        assert client.patch(path, json={"note": None}).json()["note"] is None
        assert client.get(path).json()["name"] == "first"
        for wrong in ({"tag": ["a"]}, {"tags": "best"}, {"name": "a\u202eb"}, {"name": "n" * 129}):
            assert client.patch(path, json=wrong).status_code in (400, 422), wrong
        assert client.patch(f"/api/tunix/runs/{uuid4()}/notes", json={}).status_code == 404


def test_a_waiting_run_takes_its_tags_along(own, root):
    run = enqueue(own, "demo", {})
    annotate(own, run.id, tags=["later"])
    folder = root / "outputs" / "runs" / "later"
    folder.mkdir(parents=True)
    with own.writing() as session:
        row = session.get_one(RunRow, run.id)
        row.folder, row.status, row.completed_at = "outputs/runs/later", "failed", now()
    assert load_view(own, run.id).notes.tags == ("later",)
    assert json.loads((folder / NOTES).read_text())["tags"] == ["later"]
    (folder / NOTES).unlink()  # somebody took them back
    assert load_view(own, run.id).notes.tags == ()


def test_runs_beside_each_other(own, two):
    good, bad = two
    with serving(own) as client:
        page = get(client, f"/runs/compare?run={good}&run={bad}")
        assert "behind" in page and "0 / 7" in page and "−88 [" in page
        assert "Answers that changed" in page and "What is 1 + 1?" in page
        assert f"/runs/{bad}/answers?beside={good}&amp;only=differs" in page
        assert "Their parameters are the same" in page and "<svg" in page
        whole = get(client, f"/runs/compare?run={good}&run={bad}&all=true")
        assert ">model</th>" in whole and "Show only what differs" in whole
        curves = client.get(f"/runs/compare/curves?run={good}&run={bad}").json()
        assert curves["metrics"]["loss"] == {str(run): [[1, 2.5]] for run in two}
        assert set(curves["runs"].values()) == {f"train {str(run)[:8]}" for run in two}
        assert "no run is selected" in get(client, "/runs/compare", 400)
        many = "&".join(f"run={uuid4()}" for _ in range(11))
        assert "select fewer" in get(client, f"/runs/compare?{many}", 400)
        get(client, f"/runs/compare?run={uuid4()}", 404)
        get(client, "/runs/compare?run=7", 422)


def test_the_page_of_a_run_says_where_it_comes_from(own, two, root):
    good = two[0]
    with serving(own) as client:
        page = get(client, f"/runs/{good}")
        assert "Started from it" in page and "Evaluations" in page and "sums-v1" in page
        assert f"/queue/new?pipeline=train&amp;from={good}" in page
        assert "1 line" not in page  # the unfinished line of a log is none
        with (root / "outputs/runs/train-8/metrics.jsonl").open("a") as log:
            log.write('\n{"step": 3, "loss": 1.5}\n')
        page = get(client, f"/runs/{good}")
        assert "1 line of metrics.jsonl cannot be read" in page
        assert client.get(f"/runs/{good}/curves").json()["loss, nats a token"]["training"] == [
            [1, 2.5],
            [3, 1.5],
        ]


def test_defaults_are_marked_and_bars_of_progress_are_one_line(own, root):
    run = start_by_hand(own, root)
    bar = (
        "\r 50%|##  | 20/40 [00:40<00:40,  2.00s/step]\r 75%|### | 30/40 [01:00<00:20,  2.00s/step]"
    )
    append_log(own, run.id, [("stderr", "  0%|  | 0/40 [00:00<?, ?step/s]")])
    with serving(own) as client:
        assert "compiling the first step" in get(client, f"/runs/{run.id}/state")
        append_log(own, run.id, [("stderr", bar)])
        state = get(client, f"/runs/{run.id}/state")
        assert "training, 30 of 40" in state and "about 20 s left" in state
        page = get(client, f"/runs/{run.id}")
        log = page[page.index('<pre class="log"') : page.index("</pre>", page.index('class="log"'))]
        assert "75%" in log and "50%" not in log and "the first line" in log
        changed, plain = page.split('<details class="defaults">')
        assert ">max_steps</th>" in changed and ">learning_rate</th>" in plain
        assert "tunix-rt train -p max_steps=40" in page
        assert "about 20 s left" in get(client, "/now")


def test_predictions_are_searched_and_put_beside_others(own, two, root):
    good, bad = two
    with serving(own) as client:
        page = get(client, f"/runs/{bad}/answers?q=7+%2B+7")
        assert page.count("<details id=") == 1 and "What is 7 + 7?" in page
        assert get(client, f"/runs/{bad}/answers?q=NO+IDEA").count("<details id=") == 7
        page = get(client, f"/runs/{bad}/answers?beside={good}&only=differs")
        assert page.count("<details id=") == 7 and "knows-8" in page and 'data-right="no"' in page
        assert f'value="{good}"' in get(client, f"/runs/{bad}/answers")
        get(client, f"/runs/{bad}/answers?only=odd", 400)
        get(client, f"/runs/{bad}/answers?beside=odd", 400)
        assert "same set by the same judge" in get(
            client, f"/runs/{bad}/answers?beside={uuid4()}", 400
        )


def test_sets_are_not_mixed_under_one_rank(own, two):
    with own.writing() as session:
        run = RunRow(id=uuid4(), pipeline="train", status="completed", dataset_key="other-v1")
        session.add(run)
        session.flush()
        session.add(
            EvaluationRow(
                run_id=run.id, model_id="alone", dataset_key="other-v1", evaluation_set=EVIL,
                evaluation_fingerprint="e" * 64, judge_name="answer_correctness",
                judge_version="2", score=99.0, low=90.0, high=100.0, verdict="pass", item_count=50,
            )
        )  # fmt: skip
    with serving(own) as client:
        page = get(client, "/leaderboard")
        assert page.count('class="board"') == 2 and "only one" in page
        assert page.count('<td class="number">1</td>') == 2 and page.count("★</i> best") == 1
        assert 'href="/datasets/other-v1"' in page and "higher is better" in page
        alone = get(client, "/leaderboard?evaluation_set=sums-v1&judge=answer_correctness")
        assert alone.count('class="board"') == 1 and "behind" in alone


def test_documents_run_nothing(own, two, root):
    run = two[0]
    folder = root / "outputs" / "runs" / "train-8"
    outputs = [{"output_type": "display_data", "data": {"text/html": f"<b>ok</b>{EVIL}"}}]
    cells = [
        {"cell_type": "markdown", "source": f"# Title\n\n{EVIL}"},
        {"cell_type": "code", "source": EVIL, "outputs": outputs},
    ]
    (folder / "notebook.ipynb").write_text(json.dumps({"cells": cells}))
    (folder / "report.html").write_text(f"<script>{HIT}</script>")
    with serving(own) as client:
        for name in ("notebook", "report"):
            page = client.get(f"/runs/{run}/{name}", headers=BROWSER)
            assert 'sandbox=""' in page.text and f"/runs/{run}/{name}/document" in page.text
            assert f'<a href="/runs/{run}">←' in page.text and EVIL not in page.text
            assert "frame-src 'self'" in page.headers["content-security-policy"]
            document = client.get(f"/runs/{run}/{name}/document")
            policy = document.headers["content-security-policy"]
            assert "sandbox" in policy and "script" not in policy and "'self'" in policy
            assert document.headers["x-frame-options"] == "SAMEORIGIN"
        shown = client.get(f"/runs/{run}/notebook/document").text
        assert "<h1>Title</h1>" in shown and "<b>ok</b>" in shown
        (folder / "notebook.ipynb").write_text('{"cells": [7]}')
        get(client, f"/runs/{run}/notebook/document", 400)


def test_a_thousand_runs_stay_quick(own, root):
    parameters = {"learning_rate": 3e-4, "seed": 0}
    figures = {"loss": 0.5, "first_loss": 5.0, "steps": 100, "tokens_per_second": 4000}
    ids = [uuid4() for _ in range(1000)]
    with own.writing() as session:
        session.add_all(
            RunRow(
                id=id, pipeline="train", status="completed", model_id=f"m{n}", attempts=1,
                parameters=parameters | {"seed": n}, completed_at=now(), metrics=figures,
            )
            for n, id in enumerate(ids)
        )  # fmt: skip
    unread = list_views(own).unread
    while unread:
        unread = list_views(own, patience=2).unread
    with own.reading() as session:
        assert session.query(RunSummaryRow).count() == 1000
    began = time.process_time()
    found = list_views(own, filter="learning_rate < 1e-3 and seed >= 900", order="-seed")
    spent = time.process_time() - began
    assert found.matching == 100 and found.views[0].value("seed") == 999
    assert spent < 0.5, f"{spent:.2f} s of processor time for a thousand runs"
