"""The whole way in one browser: from traces to a model that is asked, with a worker that trains.

Search, rate, choose, build, queue a training, watch it live, evaluate it, compare it with an
earlier run, promote it, and ask it. Each page is looked at in both widths; with
TUNIX_RT_SCREENSHOTS=FOLDER it is kept as a picture, also in the dark. Nightly, because it trains.
"""

import os
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest
from serving import make_run, server_process, sum_trace
from small_model import talking_model
from test_pages import CHROMIUM, EVIL, browser_at, evil_trace

from tunix_rt.store.engine import open_store
from tunix_rt.tracking.evaluations import evaluate_run

NIGHTLY = pytest.mark.skipif("TUNIX_RT_NIGHTLY" not in os.environ, reason="a minute: nightly")
WORKER = """
import sys
from tunix_rt.jobs.worker import work
from tunix_rt.store.engine import open_store
from tunix_rt.tracking.evaluations import score_completed
work(open_store(sys.argv[1]), poll_seconds=0.1, on_completed=score_completed)
"""
TRAINING = {
    "model": "small", "max_steps": "12", "batch_size": "2", "seq_length": "128", "log_every": "1",
    "learning_rate": "0.01", "warmup_steps": "2", "validation_traces": "2", "validate_every": "6",
}  # fmt: skip
MINUTES = 180_000  # Milliseconds that a run may take on a busy machine


@contextmanager
def worker_process(address: str, root):
    "Let a worker take what is queued."
    environment = {**os.environ, "TUNIX_RT_ROOT": str(root), "DATABASE_URL": address}
    with (root / "worker.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, address], env=environment, cwd=root, stderr=log
        )
    yield process
    process.kill()
    process.wait()


def look_at(page, name: str) -> None:
    "Check a page in both widths, and keep pictures of it if they are wanted."
    folder = os.environ.get("TUNIX_RT_SCREENSHOTS")
    for width in (380, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        for _ in range(20):  # a curve follows the width in the next frames
            if (wide := page.evaluate("document.documentElement.scrollWidth - innerWidth")) <= 0:
                break
            page.wait_for_timeout(100)
        assert wide <= 0, f"{name} is {wide} pixels too wide at {width}"
        for scheme in ("dark", "light") if folder else ():
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=f"{folder}/{name}-{width}-{scheme}.png", full_page=True)


def build(page) -> None:
    "Search, rate, choose, and build a dataset."
    page.goto("/")
    look_at(page, "overview")
    page.locator(".bar a", has_text="Traces").first.click()
    page.fill("input[name=text]", "sum*")
    page.keyboard.press("Enter")
    page.wait_for_selector("mark")
    look_at(page, "search")
    page.locator(".rows .title").nth(1).click()
    page.locator(".pick", has_text="4").click()
    page.fill(".rate input[name=author]", "ann")
    page.click("text=Save the rating")
    page.wait_for_selector(".ratings >> text=ann")
    page.locator("h1").click()
    page.keyboard.press("j")
    page.wait_for_url("**/traces/*sum*")
    assert page.input_value(".rate input[name=author]") == "ann"  # remembered
    look_at(page, "trace")
    page.click("text=Back to the list")
    page.locator("[data-tick-all]").check()
    assert page.inner_text("[data-selected]") == "24 selected"
    page.click("text=Build a dataset from the selected")
    page.fill("input[name=dataset_name]", "walk")
    look_at(page, "build")
    page.click("button:has-text('Build')")
    page.wait_for_selector("h1:has-text('walk-v1')")
    look_at(page, "dataset")


def train(page) -> str:
    "Queue a training, and watch it until it is done."
    page.click("text=Train on it")
    assert page.input_value("input[name=dataset]") == "walk-v1"
    folded = page.locator("form.fields details:not([open]) > summary")
    while folded.count():
        folded.first.click()
    for name, value in TRAINING.items():
        page.fill(f"form.fields [name={name}]", value)
    page.wait_for_selector("#check >> text=Nothing stands in its way", timeout=MINUTES)
    look_at(page, "queue")
    page.click("text=Queue it")
    page.wait_for_url("**/runs/*")
    address = page.url
    page.wait_for_selector("#state .status-running", timeout=MINUTES)
    page.wait_for_selector(".uplot canvas", timeout=MINUTES)
    look_at(page, "live")
    page.wait_for_selector("#state .status-completed", timeout=MINUTES)
    assert "loss" in page.inner_text(".charts") and "12/12" in page.inner_text("pre.log")
    page.reload()
    return address


def evaluate(page, run: str) -> None:
    "Queue an evaluation of a run, and wait for its score."
    page.select_option("select[name=evaluation_set]", "sums-v1")
    page.click("form[action$='/evaluate-model'] button")
    page.wait_for_url(lambda url: url != run)
    page.wait_for_selector("#state .status-completed", timeout=MINUTES)
    page.goto(run)
    page.wait_for_selector("h2:has-text('Evaluation')")
    look_at(page, "run")
    page.click("text=Predictions")
    page.wait_for_selector("[data-answers] details")
    look_at(page, "predictions")


def compare(page, run: str, earlier: str) -> None:
    "Compare a run with an earlier one, from the table of runs."
    page.locator(".bar a", has_text="Runs").first.click()
    look_at(page, "runs")
    for id in (run.rpartition("/")[2], earlier):
        page.check(f"input[value='{id}']")
    page.click("button:has-text('Compare 2 runs')")
    page.locator(".overlay .plot").first.scroll_into_view_if_needed()
    page.wait_for_selector(".overlay canvas")
    assert "ahead" in page.inner_text("main")  # the earlier one knows all, and this one nothing
    look_at(page, "compare")
    page.locator(".bar a", has_text="Leaderboard").first.click()
    assert page.locator("tbody tr").count() == 2
    look_at(page, "leaderboard")


def promote(page, run: str) -> None:
    "Promote a run to a model with an alias."
    page.goto(run)
    page.locator(".actions a", has_text="Promote").click()
    page.fill("input[name=model]", "adder")
    page.fill("input[name=alias]", "champion")
    look_at(page, "promote")
    page.click("button:has-text('Promote')")
    page.wait_for_selector("h2:has-text('champion')")
    look_at(page, "model")


def ask(page) -> None:
    "Ask the model."
    page.locator(".bar a", has_text="Playground").first.click()
    page.locator(".side select").first.select_option("adder@champion")
    page.fill("textarea", f"What is 4 plus 8? {EVIL}")
    page.locator("main summary").click()
    page.fill("input[name=max_tokens]", "8")
    page.click("button.main")
    page.wait_for_selector(".side .figures:has-text('tokens in')", timeout=MINUTES)
    look_at(page, "playground")


@NIGHTLY
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
def test_the_whole_way(root):
    address = f"sqlite:///{root / 'walk.db'}"
    store = open_store(address)
    earlier = make_run(store, root, 8, model_id="knows-8")
    evaluate_run(store, earlier)
    store.close()
    talking_model(root / "small")
    served = {"TUNIX_RT_SERVED_MODELS": "*"}
    with (
        server_process(address, root, **served) as (_, url),
        worker_process(address, root),
        browser_at(url) as page,
    ):
        traces = [evil_trace(), *(sum_trace(number) for number in range(20, 44))]
        assert httpx.post(f"{url}/api/traces/batch", json=traces).status_code == 201
        page.set_viewport_size({"width": 1280, "height": 900})
        build(page)
        run = train(page)
        evaluate(page, run)
        compare(page, run, str(earlier))
        promote(page, run)
        ask(page)
        page.goto(f"{run}/delete")  # what the walk made can't go while the alias names it
        assert "adder@v1" in page.inner_text("main") and page.locator("button.danger").count() == 0
        look_at(page, "delete")
        left = ("htmx:afterRequest", "htmx:sendAbort")  # a request under way when a page was left
        assert [each for each in page.wrong if not each.startswith(left)] == []
        assert page.evaluate("document.documentElement.dataset.hit ?? 0") == 0
