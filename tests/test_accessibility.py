"Every page of the server in a browser: at both widths, light and dark, by the rules of axe-core."

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from serving import make_run, server_process
from sqlalchemy import select
from test_pages import CHROMIUM, EVIL, browser_at, evil_trace, practice_by_hand

from tunix_rt.data.ungar import high_card_duel
from tunix_rt.registry.models import create_registered_model
from tunix_rt.registry.promotion import promote
from tunix_rt.serve.api_router import PAGES
from tunix_rt.store.deletions import TraceChoice, remove_traces
from tunix_rt.store.engine import open_store
from tunix_rt.store.preferences import keep_preferences
from tunix_rt.store.ratings import add_rating
from tunix_rt.store.search_index import update_index
from tunix_rt.store.tables import ModelVersion
from tunix_rt.store.traces import add_score, add_traces
from tunix_rt.traces.schema import Trace
from tunix_rt.tracking.baselines import set_baseline
from tunix_rt.tracking.evaluations import evaluate_run
from tunix_rt.tuning.jobs import create_job

AXE = find_spec("axe_playwright_python")
SEEN_AT = [(1280, "light", None), (380, "dark", None)]
COLORS_AT = [(1280, "dark", "color-contrast"), (380, "light", "color-contrast")]
NO_PAGE = re.compile(
    r"/static/|/report$|/state$|/completions$|/now$|/curves$|/unread$|/document$|[.]svg$|/download"
    r"|/logout"
)
ASK_AXE = """
only => axe.run(document, only ? {runOnly: {type: 'rule', values: [only]}} : {}).then(found =>
    found.violations.filter(each => ['serious', 'critical'].includes(each.impact)).map(each =>
        `${each.id}: ${each.nodes.slice(0, 3).map(node => node.html.slice(0, 160)).join(' | ')}`))
"""
RICH = """Solve $x^2 = 9$:

| x | value |
|---|---|
| 3 | `0` |

[more](https://example.com)"""


def furnish(store, root) -> dict[str, str]:
    "Put one of everything on the pages, and say what it is called there."
    run = make_run(store, root, 3, model_id="knows-" + "a-lot-" * 20)
    evaluate_run(store, run)
    practice_by_hand(store, root)
    model = create_registered_model(store, "adder")
    promote(store, model.id, run)
    rich = Trace.model_validate(
        {
            "prompt": RICH, "final_answer": "$x = \\pm 3$", "meta": {"source": "s" * 200},
            "steps": [{"i": i, "type": "t" * 60, "content": f"{RICH} {i}"} for i in range(60)],
        }
    )  # fmt: skip
    traces = [rich, Trace.model_validate(evil_trace()), *high_card_duel(30)]
    stored = add_traces(store, traces)
    for place, each in enumerate(stored[:6]):
        add_rating(store, each.id, author=EVIL[:60], stars=1 + place % 5, thumb=1, note=EVIL)
        add_score(store, each.id, score=12.0 * place, criteria="baseline", details={})
    add_rating(store, stored[0].id, author="ann", step=1, thumb=-1, note="why?")
    other = rich.model_copy(update={"final_answer": "$x = 9$"})
    add_rating(store, add_traces(store, [other])[0].id, author="ann", stars=5)
    update_index(store)
    keep_preferences(store, "rated-v1")
    job = create_job(
        store, name="search", dataset_key="sums-v1", base_model_id="tiny", metric_name="loss",
        search_space={"learning_rate": {"type": "choice", "values": [0.1, 0.2]}},
    )  # fmt: skip
    with store.reading() as session:
        version = session.scalars(select(ModelVersion)).one()
    set_baseline(store, "main", run)
    gone = TraceChoice(ids=[each.id for each in stored[-2:]])
    act = remove_traces(store, gone, who=EVIL[:60], reason=EVIL).act_id
    return {
        "trace_id": str(stored[0].id), "run_id": str(run), "model_id": str(model.id),
        "job_id": str(job.id), "dataset_key": "sums-v1", "version_id": str(version.id),
        "pipeline": "train", "name": "dataset", "baseline_name": "main", "alias": "champion",
        "preferences_name": "rated-v1",
        "act_id": str(act), "/traces/delete": "?text=opponent*",
        "/traces/compare": f"?base={stored[0].id}&other={stored[1].id}",
        "/runs/compare": f"?run={run}",
    }  # fmt: skip


def page_paths(known: dict[str, str]) -> list[str]:
    "The pages that there are, from the routes."
    paths = []
    for route in (route for module in PAGES for route in module.router.routes):
        if "GET" not in route.methods or NO_PAGE.search(route.path):
            continue
        unknown = set(re.findall(r"{(\w+)", route.path)) - known.keys()
        assert not unknown, f"say in `furnish` what {unknown} of {route.path} is"
        path = re.sub(r"{(\w+)(:\w+)?}", lambda found: known[found[1]], route.path)
        paths.append(path + known.get(path, ""))
    return [*paths, "/traces?text=7*+-nothing&sort=stars&rated=true", "/nothing-here"]


def problems_of(page, width: int, scheme: str, rule: str | None) -> list[str]:
    "What axe and the width of the window find on a page."
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    found = page.evaluate(ASK_AXE, rule)
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return [*found, *([f"{wide} pixels too wide"] if wide > 0 else [])]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
@pytest.mark.skipif(AXE is None, reason="axe-core is not there: pip install axe-playwright-python")
def test_every_page_can_be_used_by_everybody(root):
    axe = (Path(AXE.submodule_search_locations[0]) / "axe.min.js").read_text()
    address, found = f"sqlite:///{root / 'pages.db'}", []
    store = open_store(address)
    paths = page_paths(furnish(store, root))
    store.close()
    with server_process(address, root) as (_, url), browser_at(url) as page:
        for path in paths:
            answer = page.goto(path)
            if not answer.headers.get("content-type", "").startswith("text/html"):
                continue
            page.evaluate(axe)
            for width, scheme, rule in SEEN_AT + COLORS_AT:
                found += [
                    f"{path} at {width}, {scheme}: {each}"
                    for each in problems_of(page, width, scheme, rule)
                ]
        assert found == [], "\n".join(found)

        page.goto("/traces")
        page.set_viewport_size({"width": 380, "height": 800})
        assert not page.locator(".bar nav > .links a").first.is_visible()
        page.click("text=Menu")
        page.locator(".menu a", has_text="Leaderboard").click()
        page.wait_for_url("**/leaderboard")
        assert page.wrong == [each for each in page.wrong if "404 (Not Found)" in each]
        assert page.evaluate("document.documentElement.dataset.hit ?? 0") == 0
