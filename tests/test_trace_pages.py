"The pages of traces, by a program: hostile texts, ratings, edits, datasets from what was found."

import html
import json
import re
import time
from contextlib import closing
from html import unescape
from urllib.parse import quote

import pytest
from serving import make_run, serving, sum_trace
from test_pages import BROWSER, EVIL, evil_trace

from tunix_rt.data.datasets import load_dataset
from tunix_rt.store.datasets import build_from_store
from tunix_rt.store.deletions import TraceChoice, delete_traces
from tunix_rt.store.engine import open_store
from tunix_rt.store.preferences import keep_preferences
from tunix_rt.store.ratings import add_rating, list_ratings
from tunix_rt.store.search_index import update_index
from tunix_rt.store.traces import add_traces, get_trace
from tunix_rt.store.versions import versions_of
from tunix_rt.traces.display import UNSEEN
from tunix_rt.traces.schema import Trace


@pytest.fixture
def pages(root):
    "A client of the pages, and the store behind them."
    with closing(open_store(f"sqlite:///{root / 'pages.db'}")) as store, serving(store) as client:
        client.headers.update(BROWSER)
        client.store = store
        yield client


def stored(client, *traces) -> list:
    "Store and index traces."
    ids = [each.id for each in add_traces(client.store, list(map(Trace.model_validate, traces)))]
    update_index(client.store)
    return ids


def page(client, path, status=200) -> str:
    "The text of a page that holds nothing harmful."
    answer = client.get(path)
    assert answer.status_code == status, answer.text[:500]
    shown = re.sub(r'<textarea.*?</textarea>|value="[^"]*"', "", answer.text, flags=re.DOTALL)
    wrong = r"<script(?! src=\"/static)|<img|<svg onload|href=\"javascript|\u202e|\u2066"
    harmful = re.findall(wrong, shown)  # what a field holds is text, and has to come back as it was
    assert harmful == [], harmful
    return answer.text


HOSTILE = {
    "script": evil_trace(),
    "bidi": sum_trace(1) | {"prompt": "evil \u202e txt.exe", "final_answer": "\u2066x\u2069"},
    "markdown": sum_trace(2)
    | {
        "prompt": f"**x** [click](javascript:alert(1)) ![p](https://evil.example/p.png)\n\n{EVIL}",
        "final_answer": "$\\href{javascript:alert(1)}{x} \\text{<script>alert(1)</script>}$",
    },
    "long": sum_trace(3) | {"prompt": "word " * 9_999, "final_answer": "$x$ " * 12_000},
    "steps": sum_trace(4)
    | {"steps": [{"i": i, "type": "**t**", "content": f"**carry** ${i}$"} for i in range(1000)]},
    "brackets": sum_trace(5) | {"prompt": "**a** " + "[" * 9_900, "final_answer": "`" * 9_900},
    "meta": sum_trace(6, **{EVIL[:60]: {EVIL: [EVIL]}, "source": EVIL, "category": EVIL}),
    "rubric": sum_trace(7, rubric=[[EVIL, 1.0]]),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_traces_are_shown_and_harm_nobody(pages, kind):
    (id,) = stored(pages, HOSTILE[kind])
    search = "/traces?text=evil+OR+carry&sort=relevance"
    paths = ("/traces", search, f"/traces/{id}", f"/traces/{id}?view=plain&text=x")
    edits = () if kind == "steps" else (f"/traces/{id}/edit",)
    for path in (
        *paths,
        *edits,
        f"/traces/build?take=ids&ids={id}",
        f"/traces/compare?ids={id}&ids={id}",
    ):
        start = time.process_time()
        page(pages, path)
        assert time.process_time() - start < 5, path
    if kind == "steps":
        assert "a form holds 200" in page(pages, f"/traces/{id}/edit", status=400)


ODD = "7\u202e4\u200f\x1b[31m\x01\x7f\u200b\ufeff\U000e0041."


def unseen(text: str) -> list[str]:
    "What cannot be seen on a page, but for the fields of forms and the text of code."
    raw = r'<textarea.*?</textarea>|value="[^"]*"|<bdi dir="ltr" data-unseen="[^"]*">.</bdi>'
    return UNSEEN.findall(re.sub(raw, "", text, flags=re.DOTALL))


def test_what_cannot_be_seen_is_visible_everywhere(pages, root):
    odd = sum_trace(1, source=ODD, category=ODD, **{ODD: ODD})
    odd |= {"prompt": f"{ODD} **bold** ```a``` {ODD}", "final_answer": ODD}
    odd["steps"] = [{"i": 0, "type": ODD, "content": f"{ODD}\n```{ODD}\nx = '{ODD}'\n```"}]
    ids = stored(pages, odd, odd | {"final_answer": f"{ODD} no"})
    for id, stars in zip(ids, (5, 1), strict=True):
        add_rating(pages.store, id, author=ODD, stars=stars, note=ODD)
    data = build_from_store(pages.store, name="odd", version="v1")
    with (data.folder / "README.md").open("a") as file:
        file.write(ODD)
    keep_preferences(pages.store, "odd-v1")
    run = make_run(pages.store, root, 1)
    noted = {"note": ODD}  # a name and a tag are refused
    assert pages.patch(f"/api/tunix/runs/{run}/notes", json=noted).status_code == 200
    wrong = quote(ODD)
    for path in (
        "/traces", f"/traces?text={wrong}", f"/traces?source={wrong}", f"/traces/{ids[0]}",
        f"/traces/{ids[0]}?view=plain", f"/traces/{ids[0]}/edit", f"/traces/{ids[0]}/delete",
        f"/traces/compare?ids={ids[0]}&ids={ids[1]}", "/traces/build", "/traces/pairs?text=bold",
        "/datasets/odd-v1", "/preferences/odd-v1", "/runs", f"/runs/{run}", f"/runs?filter={wrong}",
        f"/runs/{wrong}", f"/datasets/{wrong}", f"/preferences/{wrong}",
        f"/leaderboard?evaluation_set={wrong}",
        f"/queue/new?pipeline=train&dataset={wrong}", f"/queue/dataset?dataset_name={wrong}",
    ):  # fmt: skip
        text = pages.get(path).text
        assert unseen(text) == [], (path, unseen(text))
    assert (
        r"7\u202e4\u200f\x1b[31m\x01\x7f\u200b\ufeff\U000e0041."
        in pages.get(f"/traces/{ids[1]}").text
    )
    code = pages.get(f"/traces/{ids[0]}").text.partition("<pre><code")[2].partition("</code>")[0]
    assert unescape(re.sub("<[^>]*>", "", code.partition(">")[2])) == f"x = '{ODD}'\n"
    pages.post(f"/traces/{ids[0]}/delete", data={"confirm": "yes", "reason": ODD})
    assert unseen(pages.get("/deletions").text) == []


def test_an_edit_keeps_what_cannot_be_seen(pages):
    (id,) = stored(pages, sum_trace(1) | {"prompt": ODD})
    form = page(pages, f"/traces/{id}/edit")
    (field,) = re.findall(r'<textarea name="prompt".*?>\n(.*?)</textarea>', form, re.DOTALL)
    assert unescape(field) == ODD


def test_what_a_build_left_out_is_shown_beside_what_was_kept(pages):
    told = "Ann has {} red pears in her basket and Ben has 4 in his. How many have they {} now?"
    asked = [sum_trace(1) | {"prompt": told.format(3, word)} for word in ("together", "all in all")]
    asked.append(sum_trace(1) | {"prompt": told.format(5, "together"), "final_answer": "9"})
    ids = stored(pages, *asked)
    build_from_store(pages.store, name="pears", version="v1", dedup={"threshold": 0.5})
    found = pages.get("/api/datasets/pears-v1/near-duplicates").json()
    assert (found["total"], found["compared"], found["pagination"]["next_offset"]) == (1, 3, None)
    (one,) = found["data"]
    assert {one["id"], one["kept"]} == {str(ids[0]), str(ids[1])} and "from 50% on" in one["reason"]
    assert "/datasets/pears-v1/near-duplicates" in page(pages, "/datasets/pears-v1")
    text = page(pages, "/datasets/pears-v1/near-duplicates")
    assert "<ins>" in text and f"/traces/compare?base={one['kept']}&amp;other={one['id']}" in text
    assert (
        page(pages, "/datasets/pears-v1/near-duplicates?offset=1").count("There are no more") == 1
    )
    delete_traces(pages.store, TraceChoice(ids=ids[:2]), who="ann")
    assert "was deleted from the store" in page(pages, "/datasets/pears-v1/near-duplicates")
    assert pages.get("/api/datasets/none-v1/near-duplicates").status_code == 404
    plain = page(pages, "/datasets/sums-v1/near-duplicates")
    assert "built without <code>dedup</code>" in plain


def test_hostile_searches_are_shown_as_they_were_typed(pages):
    stored(pages, evil_trace())
    for typed in (EVIL, "\u202e", '"><script>', "' OR 1=1 --", 'NEAR("a" *', "a" * 256, "{{7*7}}"):
        page(pages, str(pages.build_request("GET", "/traces", params={"text": typed}).url))
    wrongs = ["text=%00", "text=-a", "sort=size", "after=x", "min_stars=9", "dataset=none"]
    for wrong in [*wrongs, f"text={'a' * 300}"]:
        assert pages.get(f"/traces?{wrong}").status_code == 422, wrong


def test_a_list_leads_to_its_traces_and_back(pages):
    ids = stored(pages, *(sum_trace(n, source=f"s{n % 2}") for n in range(30)))
    text = page(pages, "/traces?text=sum")
    assert "<strong>30</strong>" in text and text.count('name="ids"') == 25
    assert "source=s1" in text and "after=" in text
    text = page(pages, "/traces?text=is+12")
    assert "<mark>12</mark>" in text and "source: " not in text
    text = page(pages, "/traces?text=sum&source=s1")
    assert "<strong>15</strong>" in text and "source: s1" in text
    text = page(pages, f"/traces/{ids[12]}?text=sum")
    assert f"/traces/{ids[11]}?text=sum" in text and f"/traces/{ids[13]}?text=sum" in text
    assert f">{ids[12]}</code>" in text
    assert "No trace matches" in page(pages, "/traces?text=xylophone")
    assert "sums-v1" in page(pages, f"/traces/{ids[3]}")


def test_rating_and_scoring(pages):
    (id,) = stored(pages, sum_trace(3))
    form = {"thumb": "up", "stars": "4", "note": EVIL, "step": "", "author": "ann"}
    assert "4 of 5 stars" in pages.post(f"/traces/{id}/rate?text=sum", data=form).text
    pages.post(f"/traces/{id}/rate", data={"down": "0", "author": "bob"})
    whole, step = list_ratings(pages.store, id)[::-1]
    assert (whole.author, whole.thumb, whole.stars, whole.note) == ("ann", 1, 4, EVIL)
    assert (step.author, step.step, step.thumb) == ("bob", 0, -1)
    text = page(pages, f"/traces/{id}")
    assert "4 of 5 stars" in text and "step 0" in text
    assert "★" in page(pages, "/traces?min_stars=4")
    sent = pages.post(f"/traces/{id}/score?text=sum", follow_redirects=False)
    assert sent.headers["location"] == f"/traces/{id}?text=sum"
    assert "of 100" in page(pages, f"/traces/{id}")
    for wrong, status in (
        ({}, 422),
        ({"stars": "9"}, 422),
        ({"note": "\x00"}, 422),
        ({"up": "7"}, 422),
    ):
        assert pages.post(f"/traces/{id}/rate", data=wrong).status_code == status, wrong


def test_editing_makes_a_new_version(pages):
    (id,) = stored(pages, sum_trace(3, keep="me"))
    form = {
        "prompt": "What is\r\n3 + 3?", "final_answer": "six", "author": "ann",
        "i": ["0", "", ""], "type": ["sum", "", "sum"], "content": ["3 + 3 = 6", "so it is 6", " "],
    }  # fmt: skip
    sent = pages.post(f"/traces/{id}/edit", data=form, follow_redirects=False)
    assert sent.status_code == 303, sent.text
    (made,) = versions_of(pages.store, id).edits
    trace = get_trace(pages.store, made).trace
    assert (trace.prompt, trace.final_answer) == ("What is\n3 + 3?", "six")
    assert [(step.i, step.type) for step in trace.steps] == [(0, "sum"), (1, "step")]
    assert trace.meta["keep"] == "me"
    assert "There is a newer version" in page(pages, f"/traces/{id}")
    assert "Edited from" in page(pages, f"/traces/{made}")
    assert pages.post(f"/traces/{id}/edit", data=form | {"prompt": "\x00"}).status_code == 422
    assert pages.post(f"/traces/{made}/edit", data=form).status_code == 422  # nothing changed


def test_datasets_are_built_from_the_list(pages):
    ids = stored(pages, *(sum_trace(n) for n in range(20, 26)))
    for query, size in (("text=sum", 6), (f"take=ids&ids={ids[1]}&ids={ids[4]}", 2)):
        text = page(pages, f"/traces/build?{query}")
        assert f"<strong>{size}</strong>" in text
        filters = html.unescape(re.search(r'name="filters" value="([^"]*)"', text)[1])
        form = {"dataset_name": f"from {size}", "dataset_version": "v1", "filters": filters,
                "limit": "", "seed": ""}  # fmt: skip
        sent = pages.post("/traces/build", data=form, follow_redirects=False)
        assert sent.headers["location"] == f"/datasets/from_{size}-v1", sent.text
        dataset = load_dataset(f"from_{size}-v1")
        assert len(dataset) == size and dataset.manifest["filters"] == json.loads(filters)
    assert "no trace was selected" in page(pages, "/traces/build?take=ids", 400)
    assert "two traces are compared" in page(pages, f"/traces/compare?ids={ids[0]}", 400)
    for wrong in ("[", "[]", '{"search": {"stars": 1}}'):
        form = {"dataset_name": "x", "dataset_version": "v1", "filters": wrong}
        assert pages.post("/traces/build", data=form).status_code == 422, wrong
