"The pages, by a program and by a browser."

import hashlib
import json
import os
import re
import shutil
from contextlib import closing, contextmanager
from datetime import timedelta
from importlib.resources import files
from uuid import uuid4

import httpx
import pandas as pd
import pytest
from serving import TOKEN, make_run, server_process, serving, sum_trace
from small_model import talking_model

from tunix_rt.jobs.logs import append_log
from tunix_rt.registry.models import find_model_named
from tunix_rt.serve.api_router import PAGES
from tunix_rt.serve.app import create_app
from tunix_rt.serve.auth import COOKIE
from tunix_rt.store.engine import open_store
from tunix_rt.store.tables import RunRow, now
from tunix_rt.tracking.baselines import set_baseline
from tunix_rt.tracking.evaluations import evaluate_run

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
LISTS = ("/traces", "/datasets", "/runs", "/leaderboard", "/tuning", "/models")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HIT = "document.documentElement.dataset.hit = 1"
EVIL = f"<script>{HIT}</script><img src=x onerror='{HIT}'> [click](javascript:{HIT})"


@pytest.fixture
def own(root):
    "A store of our own, and where it is."
    address = f"sqlite:///{root / 'pages.db'}"
    with closing(open_store(address)) as store:
        store.address = address
        yield store


def evil_trace() -> dict:
    "A trace that would like to be a page."
    meta = {"source": EVIL, "category": f"'\">{EVIL}"}
    step = {"i": 0, "type": "<b>", "content": f"<svg onload='{HIT}'>"}
    return {"prompt": EVIL, "final_answer": EVIL, "steps": [step], "meta": meta}


def test_what_is_empty_says_how_to_fill_it(own):
    with serving(own) as client:
        for path in ("/", *LISTS, "/models/promote"):
            page = client.get(path, headers=BROWSER)
            assert page.status_code == 200, page.text
            words = re.findall(r'class="empty">.*?</div>', page.text, re.DOTALL)
            filled = path == "/datasets"
            assert filled or any("tunix-rt" in each or "curl" in each for each in words), path
            assert "script-src 'self'" in page.headers["content-security-policy"]
            assert "<script>" not in page.text and " style=" not in page.text
    paths = {path for path in create_app().openapi()["paths"]}
    assert not any(path.split("/")[1] not in ("api", "metrics") for path in paths)
    assert len([route for module in PAGES for route in module.router.routes]) >= 30


def test_refusals_are_pages_for_people_and_json_for_programs(own):
    missing = f"/runs/{uuid4()}"
    with serving(own) as client:
        page, told = client.get(missing, headers=BROWSER), client.get(missing)
        assert page.status_code == told.status_code == 404
        assert page.headers["content-type"].startswith("text/html")
        assert "there is no run" in page.text and "there is no run" in told.json()["detail"]
        assert (
            page.headers["x-request-id"] and "script-src" in page.headers["content-security-policy"]
        )
        for path, status in (("/runs?status=odd", 400), ("/runs/7", 422), ("/nothing", 404)):
            page = client.get(path, headers=BROWSER)
            assert (page.status_code, "text/html; charset=utf-8") == (
                status,
                page.headers["content-type"],
            )
        part = client.get(missing, headers={**BROWSER, "HX-Request": "true"})
        assert part.headers["content-type"] == "application/json"
        foreign = {"Origin": "https://evil.example"}
        assert client.post("/models/promote", headers={**BROWSER, **foreign}).status_code == 403
        assert client.get("/static/../app.py").status_code == 404
        assert client.get("/static/VENDORED.md").status_code == 404


def test_a_form_may_be_sent_with_empty_fields(own):
    with serving(own) as client:
        for path in ("/runs?status=&filter=&sort=", "/traces?text=&source=", "/leaderboard?judge="):
            assert client.get(path, headers=BROWSER).status_code == 200, path
        assert client.get(f"/leaderboard?judge={'x' * 300}", headers=BROWSER).status_code == 422


def test_signing_in(own):
    with serving(own, token=TOKEN) as client:
        sent = client.get("/runs?status=failed", headers=BROWSER, follow_redirects=False)
        assert sent.status_code == 303
        assert sent.headers["location"] == "/login?next=/runs%3Fstatus%3Dfailed"
        assert client.get("/runs").status_code == 401
        assert (
            client.get("/login").status_code == client.get("/static/pages.css").status_code == 200
        )
        refused = client.post("/login", data={"token": "guess"}, headers=BROWSER)
        assert refused.status_code == 403 and COOKIE not in client.cookies
        away = {"token": TOKEN, "next": "//evil.example"}
        assert client.post("/login", data=away, follow_redirects=False).headers["location"] == "/"
        cookie = client.post("/login", data=away, follow_redirects=False).headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=lax" in cookie and TOKEN not in cookie
        assert client.get("/runs").status_code == client.get("/api/traces").status_code == 200
        client.post("/logout", follow_redirects=False)
        assert client.get("/runs").status_code == 401


def test_forms_do_what_endpoints_do(store, root):
    good, bad = (make_run(store, root, right, model_id=f"knows-{right}") for right in (8, 1))
    with serving(store) as client:
        for run in (good, bad):
            done = client.post(f"/runs/{run}/evaluate", data={"judge": "answer_correctness"})
            assert done.status_code == 200, done.text  # after a redirect to the run
            assert "of 100, 95% interval" in done.text
        board = client.get("/leaderboard").text
        assert board.count("<svg") == 3 and "best" in board and "behind" in board
        asked = client.post(f"/runs/{good}/evaluate-model", data={"evaluation_set": "sums-v1"})
        assert asked.status_code == 200 and "pending" in asked.text
        set_baseline(store, "main", good)
        form = {"model": "adder", "run_id": str(bad), "gate": "main", "alias": "champion"}
        refused = client.post("/models/promote", data=form, headers=BROWSER)
        assert refused.status_code == 400 and "was not promoted" in refused.text
        made = client.post("/models/promote", data=form | {"run_id": str(good)})
        assert made.status_code == 200 and "champion" in made.text
        assert find_model_named(store, "adder").aliases == {"champion": "v1"}
        waiting = asked.url.path.rsplit("/", 1)[-1]
        assert "cancelled" in client.post(f"/runs/{waiting}/cancel").text
        again = client.post(f"/runs/{waiting}/cancel", headers=BROWSER)
        assert again.status_code == 400 and "nothing to cancel" in again.text
        assert f"/runs/{bad}/answers" in client.get(f"/runs/{bad}").text
        said = client.get(f"/runs/{bad}/answers?only=wrong")
        assert said.text.count("<details id=") == 7


def test_a_report_is_in_a_sandbox(own, root):
    run = make_run(own, root, 3)
    folder = root / "outputs" / "runs" / "train-3"
    (folder / "report.html").write_text(f"<script>{HIT}</script>")
    with serving(own) as client:
        assert f'<a href="/runs/{run}">' in client.get(f"/runs/{run}/report").text  # a way back
        page = client.get(f"/runs/{run}/report/document")
        assert "sandbox" in page.headers["content-security-policy"]
        assert "script-src" not in page.headers["content-security-policy"]


def test_a_log_that_cannot_be_read_takes_nothing_along(own, root):
    run = start_by_hand(own, root)
    log = root / "outputs" / "runs" / "by-hand" / "metrics.jsonl"
    with serving(own) as client:
        for text in ('{"step": 1, "loss": NaN}\n', "[7]\n", '{"step": "one", "loss": null}\n'):
            log.write_text(text)
            for path in ("/", f"/runs/{run.id}", f"/runs/{run.id}/state"):
                assert client.get(path).status_code == 200, (text, path)
            assert client.get(f"/runs/{run.id}/curves").json() == {}


def test_files_of_others_are_what_the_table_says():
    static = files("tunix_rt.serve") / "static"
    lines = (static / "VENDORED.md").read_text()
    table = re.findall(r"^\| (\S+) \| .* \| ([0-9a-f]{64}) \|$", lines, re.MULTILINE)
    ours = {"htmx.min.js", "uplot.min.js", "uplot.min.css", "swagger-ui.min.js", "swagger-ui.css"}
    assert {name for name, _ in table} == ours
    for name, sha256 in table:
        assert hashlib.sha256((static / name).read_bytes()).hexdigest() == sha256, name
    assert len((static / "pages.css").read_text().splitlines()) < 600


@contextmanager
def browser_at(url: str):
    "Open a browser that notes what went wrong on its pages, and what they asked for elsewhere."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(base_url=url, viewport={"width": 380, "height": 800})
        page.wrong = []
        page.on("console", lambda said: said.type == "error" and page.wrong.append(said.text))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        failed = page.wrong  # a server's failure, with its address
        page.on("response", lambda it: it.status >= 500 and failed.append(f"{it.status} {it.url}"))
        page.on(
            "request",
            lambda asked: asked.url.startswith((url, "data:")) or page.wrong.append(asked.url),
        )
        yield page
        browser.close()


def start_by_hand(store, root) -> RunRow:
    "A run that a worker seems to be at."
    folder = root / "outputs" / "runs" / "by-hand"
    folder.mkdir(parents=True)
    moment = now()
    run = RunRow(
        id=uuid4(), pipeline="train", status="running", folder=str(folder.relative_to(root)),
        worker="somewhere:1", started_at=moment, lease_until=moment + timedelta(minutes=10),
        attempts=1, parameters={"max_steps": 40}, model_id="by-hand",
    )  # fmt: skip
    with store.writing() as session:
        session.add(run)
    append_log(store, run.id, [("stdout", "the first line\n")])
    (folder / "metrics.jsonl").write_text('{"step": 10, "loss": 5.5}\n')
    return run


def practice_by_hand(store, root) -> RunRow:
    "A run of GRPO that a worker seems to be at, with evil answers."
    run, folder = start_by_hand(store, root), root / "outputs" / "runs" / "by-hand"
    (folder / "completions").mkdir()
    answers = {
        "step": 10, "question": [3, 3], "prompt": EVIL, "expected": EVIL,
        "completion": ["1 + 1 = 2\n<answer>2</answer>", EVIL], "correct": [1.0, 0.0],
        "reward": [1.0, 0.0], "advantage": [0.5, -0.5], "tokens": 9, "finish_reason": "stop",
    }  # fmt: skip
    for step in (1, 10):
        path = folder / f"completions/completions_{step:05d}.parquet"
        pd.DataFrame(answers | {"step": step}).to_parquet(path)
    lines = [{"step": 0, "eval/accuracy": 0.3}]
    lines += [{"step": step, "loss": 0.0, "reward": step / 20, "entropy": 0.4} for step in (1, 10)]
    for line in lines[::2]:
        line |= {"eval/accuracy": 0.3, "eval/accuracy_low": 0.2, "eval/accuracy_high": 0.4}
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return run


def test_a_run_of_practice_shows_what_was_rewarded(own, root):
    run = practice_by_hand(own, root)
    newest = root / "outputs/runs/by-hand/completions/completions_00010.parquet"
    with serving(own) as client:
        page = client.get(f"/runs/{run.id}", headers=BROWSER).text
        assert "What was rewarded" in page and "Of step 10" in page
        assert "1 + 1 = 2\n" in page and "advantage +0.50" in page and "advantage -0.50" in page
        part = client.get(f"/runs/{run.id}/completions", headers=BROWSER).text
        assert "Of step 10" in part and " style=" not in part
        assert all("<script>" not in each and "<img src=x" not in each for each in (page, part))
        panels = client.get(f"/runs/{run.id}/curves").json()
        assert panels["reward"]["training"] == [[1, 0.05], [10, 0.5]] and "loss" not in panels
        assert len(panels["held-out accuracy"]) == 3
        newest.write_bytes(b"half of one")
        part = client.get(f"/runs/{run.id}/completions", headers=BROWSER)
        assert part.status_code == 200 and "holds no answers to show" in part.text
        newest.unlink()
        assert "Of step 1," in client.get(f"/runs/{run.id}/completions", headers=BROWSER).text


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
def test_in_a_browser(own, root):
    for right in (8, 1):
        evaluate_run(own, make_run(own, root, right, model_id=f"knows-{right}"))
    run, folder = start_by_hand(own, root), root / "outputs" / "runs" / "by-hand"
    with server_process(own.address, root) as (_, url), browser_at(url) as page:
        for trace in (evil_trace(), sum_trace(3)):
            assert httpx.post(f"{url}/api/traces", json=trace).status_code == 201

        for path in ("/", *LISTS):
            page.goto(path)
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{path} is {wide} pixels wider than a phone"
        assert page.evaluate("document.fonts.size") == 0  # the system's own

        page.goto("/traces")
        assert page.locator(".rows > li").count() == 2
        page.locator(".rows > li", has_text="<script>").locator("a").first.click()
        assert EVIL in page.inner_text(".tunix-answer")
        page.goto("/traces?text=3+%2B+3")
        assert page.locator(".rows > li").count() == 1

        page.goto("/leaderboard")
        assert page.locator("tbody tr").count() == 2
        assert page.locator("tbody svg title").first.text_content() == "100% of 8, 68–100"
        assert "behind" in page.inner_text("tbody tr:nth-child(2)")

        page.goto(f"/runs/{run.id}")
        assert "the first line" in page.inner_text("pre.log")
        page.wait_for_selector(".uplot canvas")
        append_log(own, run.id, [("stdout", f"the second line, {EVIL}\n")])
        with (folder / "metrics.jsonl").open("a") as log:
            log.write('{"step": 20, "loss": 2.5}\n')
        page.wait_for_selector("pre.log:has-text('the second line')")
        page.wait_for_selector("#state:has-text('step 20 of 40')")
        assert page.inner_text("pre.log").count("the first line") == 1
        with own.writing() as session:
            row = session.get_one(RunRow, run.id)
            row.status, row.completed_at, row.message = "completed", now(), "all done"
        page.wait_for_selector("#state .status-completed")
        assert "all done" in page.inner_text("#state")
        assert page.locator("form[action$='/cancel']").count() == 0

        page.goto("/models/promote")
        page.fill("input[name=model]", "adder")
        page.keyboard.press("Enter")
        page.wait_for_selector(".note.bad")  # by-hand left no model
        assert page.input_value("input[name=model]") == "adder"
        problems = [each for each in page.wrong if "400 (Bad Request)" not in each]
        assert problems == [] and page.evaluate("document.documentElement.dataset.hit ?? 0") == 0


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
def test_runs_in_a_browser(own, root):
    good, bad = (make_run(own, root, right, model_id=f"knows-{right}") for right in (8, 1))
    for number, run in ((8, good), (1, bad)):
        evaluate_run(own, run)
        lines = [{"step": n, "loss": number / n, "eval/accuracy": n / 40} for n in range(1, 40)]
        log = root / "outputs" / "runs" / f"train-{number}" / "metrics.jsonl"
        log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    outputs = [{"output_type": "display_data", "data": {"text/html": f"<b>a table</b>{EVIL}"}}]
    cells = [{"cell_type": "code", "source": "1 + 1", "outputs": outputs}]
    notebook = root / "outputs" / "runs" / "train-8" / "notebook.ipynb"
    notebook.write_text(json.dumps({"cells": cells}))
    with server_process(own.address, root) as (_, url), browser_at(url) as page:
        page.goto("/runs")
        page.locator("summary", has_text="Columns").click()
        page.fill("input[data-narrows]", "first_l")
        assert page.locator(".chooser li:visible").count() == 1
        assert page.is_checked(".chooser li:visible input")
        page.fill("input[data-narrows]", "dataset")
        page.uncheck(".chooser li:visible input")
        page.click("text=Show these columns")
        assert "columns=first_loss" in page.url and "columns=dataset" not in page.url
        page.fill("input[name=filter]", "first_loss <")
        page.keyboard.press("Enter")
        assert "at character 13" in page.inner_text("[role=alert]")
        page.fill("input[name=filter]", "pipeline = train")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=2 of 4 runs pass")
        assert "columns=first_loss" in page.url  # kept beside the filter
        for run in (good, bad):
            page.check(f"input[value='{run}']")
        page.click("button:has-text('Compare 2 runs')")

        page.locator(".overlay .plot").first.scroll_into_view_if_needed()  # drawn when it is seen
        page.wait_for_selector(".overlay canvas")
        assert page.locator(".overlay figure:has(.plot)").count() == 2
        page.check(".knob-row input[type=checkbox]")
        page.locator(".knob-row input[type=range]").fill("0.5")
        assert "log=1" in page.url and "smooth=0.5" in page.url
        page.reload()
        page.locator(".overlay .plot").first.scroll_into_view_if_needed()
        page.wait_for_selector(".overlay canvas")
        assert page.is_checked(".knob-row input[type=checkbox]")
        page.click("a[href*='only=differs'] >> nth=0")
        page.wait_for_selector("[data-answers] details")

        page.goto(f"/runs/{bad}/answers?beside={good}&only=differs")
        page.keyboard.press("n")
        page.keyboard.press("n")
        assert page.locator("details[open]").count() == 1
        before = page.evaluate("document.activeElement.parentElement.id")
        page.keyboard.press("k")
        page.keyboard.press("j")
        assert page.evaluate("document.activeElement.parentElement.id") == before
        page.keyboard.press("/")
        page.keyboard.type("3 + 3")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=1 pass the filter")

        page.goto(f"/runs/{good}")
        page.locator("#about summary").click()
        page.fill("input[name=name]", f"first {EVIL}"[:100])
        page.fill("input[name=tags]", "best, to show")
        page.click("#about button")
        page.wait_for_selector("p.tags a:has-text('to show')")
        page.click("text=Executed notebook")
        frame = page.frame_locator("iframe.document")
        assert frame.locator("b").inner_text() == "a table"
        page.click(f"a[href='/runs/{good}']")
        for path in (
            "/runs",
            f"/runs/compare?run={good}&run={bad}",
            f"/runs/{good}",
            f"/runs/{bad}/answers?beside={good}",
            f"/runs/{good}/notebook",
        ):
            for width in (380, 1280):
                page.set_viewport_size({"width": width, "height": 900})
                page.goto(path)
                wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert wide <= 0, f"{path} is {wide} pixels too wide at {width}"
        quiet = ("400 (Bad Request)", "Blocked script execution", "blocked by the document")
        problems = [each for each in page.wrong if not any(word in each for word in quiet)]
        problems = [each for each in problems if "Content Security Policy" not in each]
        assert problems == [] and page.evaluate("document.documentElement.dataset.hit ?? 0") == 0


def test_without_models_the_playground_says_how_to_get_some(own):
    with serving(own) as client:
        page = client.get("/playground", headers=BROWSER)
        assert page.status_code == 200 and "tunix-rt serve --models" in page.text
        assert client.post("/v1/chat/completions", json={}).json()["error"]["message"]
    with serving(own, served_models="*") as client:
        assert "tunix-rt promote" in client.get("/playground", headers=BROWSER).text
        refused = client.post("/v1/chat/completions", json={"messages": [], "model": "x"})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "messages"
    with serving(own, served_models="*", token=TOKEN) as client:
        told = client.get("/v1/models")
        assert told.status_code == 401
        assert told.json()["error"]["type"] == "authentication_error"


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
def test_the_playground_in_a_browser(own, root):
    talking_model(root / "small")
    talking_model(root / "other")
    served = {"TUNIX_RT_SERVED_MODELS": "small,other"}
    with server_process(own.address, root, **served) as (_, url), browser_at(url) as page:
        page.goto("/playground")
        page.fill("textarea", f"What is 4 plus 8? {EVIL}")
        page.locator("main summary").click()
        page.fill("input[name=max_tokens]", "40")
        page.fill("input[name=temperature]", "1")
        page.locator(".side select").nth(1).select_option("other")
        page.keyboard.press("Escape")
        page.click("button.main")
        page.wait_for_selector(".side:nth-child(2) .figures:has-text('tokens in')", timeout=120_000)
        page.wait_for_selector(".side:nth-child(1) .figures:has-text('tokens in')", timeout=120_000)
        said = page.locator(".answer").all_text_contents()
        assert said[0] == said[1] and said[0].strip()  # the same weights, the same seed
        page.locator(".keep").first.click()
        page.wait_for_selector(".side:nth-child(1) a:has-text('Kept as a trace')")
        for width in (1280, 380):
            page.set_viewport_size({"width": width, "height": 900})
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{wide} pixels too wide at {width}"
            if folder := os.environ.get("TUNIX_RT_SCREENSHOTS"):
                page.screenshot(path=f"{folder}/playground-{width}.png", full_page=True)
        page.click("text=Kept as a trace")
        page.wait_for_selector(".tunix-answer")
        assert EVIL in page.inner_text("main")
        assert page.wrong == [] and page.evaluate("document.documentElement.dataset.hit ?? 0") == 0
        kept = httpx.get(f"{url}/api/traces").json()["data"][0]["id"]
        meta = httpx.get(f"{url}/api/traces/{kept}").json()["payload"]["meta"]
        assert meta == {"source": "playground", "model": "small"}
