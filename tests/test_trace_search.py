"Search, ratings, versions and preferences of traces, on both databases."

import json
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import sum_trace
from sqlalchemy import delete, text
from test_store import trace

from tunix_rt.core.errors import DatasetError, TraceError
from tunix_rt.data.datasets import build_dataset, load_dataset
from tunix_rt.rl.preference_pairs import PreferencePair, RatedAnswer, read_preferences
from tunix_rt.store.datasets import build_from_store
from tunix_rt.store.engine import downgrade, upgrade
from tunix_rt.store.preferences import preference_records
from tunix_rt.store.ratings import add_rating, list_ratings, remove_rating
from tunix_rt.store.search import TraceQuery, neighbors, search_traces
from tunix_rt.store.search_index import index_some, pending_traces, update_index
from tunix_rt.store.tables import RatingRow, TraceMark, TraceRow
from tunix_rt.store.traces import add_score, add_traces
from tunix_rt.store.versions import add_version, versions_of
from tunix_rt.traces.schema import Trace


def found(store, typed="", **asked) -> list[str]:
    "The prompts of the hits."
    options = {name: asked.pop(name) for name in ("sort", "after", "limit") if name in asked}
    update_index(store)
    page = search_traces(store, TraceQuery(text=typed, **asked), **options)
    return [hit.found.trace.prompt for hit in page.hits]


LIBRARY = [
    trace("What is 27 + 15?", "42", {"source": "ann"}, ("7 + 5 = 12, carry the 1", "4")),
    trace("Name a prime number.", "2", {"source": "bob"}, ("2 is even, and prime",)),
    trace("Why carry?", "Because.", {"source": "ann", "reviewer": "Zoë"}, ("ten ones are a ten",)),
    trace("Überprüfe 0.5 + 0.25", "0.75", {"file": "a_b-c.jsonl"}, ("Straße, naïve café",)),
    trace("素数は何ですか", "2", None, ("二は素数です",)),
]


@pytest.fixture
def library(store):
    "Some traces, indexed."
    stored = add_traces(store, LIBRARY)
    update_index(store)
    return [each.id for each in stored]


FOUND = [
    ("carry", [2, 0]),
    ("CARRY", [2, 0]),
    ("carry ten", [2]),
    ('"carry the 1"', [0]),
    ('"the carry"', []),
    ("carr*", [2, 0]),
    ("carr", []),
    ("carry -ten", [0]),
    ("answer:2", [4, 1]),
    ("prompt:2", []),
    ("steps:even answer:2", [1]),
    ("meta:ann", [2, 0]),
    ("zoë", [2]),
    ("überprüfe", [3]),
    ("0.5", [3]),
    ("27 + 15", [0]),
    ("27+15", [0]),
    ("a_b-c.jsonl", [3]),
    ("straße café", [3]),
    ("素数は何ですか", [4]),
    ("素数*", [4]),
    ("prime OR carry", []),
    ("+ - ?", []),
    ("nothing here", []),
]


def test_words_are_found(store, library):
    for typed, hits in FOUND:
        assert found(store, typed) == [LIBRARY[number].prompt for number in hits], typed


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    typed=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40)
    | st.text("ab \"'*:()-&|!<>\\^$AND OR NOT NEAR prompt", max_size=40)
)
def test_whatever_is_typed_is_a_search(store, library, typed):
    try:
        query = TraceQuery(text=typed)
    except ValueError as error:
        assert "add a word" in str(error)
        return
    for sort in ("newest", "relevance"):
        search_traces(store, query, sort=sort)


def test_a_trace_is_found_by_its_id(store, library):
    copy = add_traces(store, [LIBRARY[1]])[0].id
    fingerprint = LIBRARY[1].fingerprint
    assert found(store, str(library[0])) == [LIBRARY[0].prompt]
    assert found(store, library[0].hex[:9]) == [LIBRARY[0].prompt]
    assert found(store, fingerprint[:12]) == [LIBRARY[1].prompt] * 2
    assert found(store, str(copy).upper()) == [LIBRARY[1].prompt]


def test_the_index_follows_what_comes_and_goes(store):
    assert pending_traces(store) == 0
    add_traces(store, [trace(f"number {n}") for n in range(7)])
    add_traces(store, [trace("a single one")])
    assert pending_traces(store) == 8 and index_some(store) == 8 and index_some(store) == 0
    with store.writing() as session:
        session.execute(delete(TraceRow).where(TraceRow.prompt == "number 3"))
    page = search_traces(store, TraceQuery(text="number"))
    assert page.total == 6 and "number 3" not in found(store, "number")
    if store.dialect == "sqlite":
        with store.writing() as session:
            session.execute(
                text("INSERT INTO trace_words (trace_words) VALUES ('integrity-check')")
            )
    add_traces(store, [trace("number 3, and more")])
    assert found(store, "number 3") == ["number 3, and more"]


def test_postgres_knows_what_came_in_before_it_plans_a_search(store):
    "In the minute before it looked by itself, one search of 100,000 traces took over five."
    if store.dialect == "sqlite":
        pytest.skip("SQLite plans by the indexes that there are")
    add_traces(store, [trace(f"What is {n}?", str(n), {"source": "ann"}) for n in range(1500)])
    known = text("SELECT reltuples FROM pg_class WHERE oid = 'traces'::regclass")
    with store.reading() as session:
        assert session.scalar(known) < 1500
    assert found(store, "what", source="ann", limit=1) == ["What is 1499?"]
    with store.reading() as session:
        assert session.scalar(known) == 1500


def test_a_failed_batch_is_not_found(store):
    with pytest.raises(ValueError, match="after all"), store.writing() as session:
        from tunix_rt.store.traces import insert_traces

        insert_traces(session, [trace("never")])
        raise ValueError("not after all")
    assert pending_traces(store) == 0 or store.dialect == "sqlite"
    assert found(store, "never") == []


def test_an_older_database_is_indexed_and_its_scores_count(store):
    downgrade(store, "0002")
    ids = [each.id for each in add_traces(store, LIBRARY)]
    with store.writing() as session:
        session.execute(
            text(
                "INSERT INTO scores (id, trace_id, criteria, score, details, created_at) "
                "VALUES (:id, :trace, 'baseline', 40.0, '{}', '2026-01-01 00:00:00')"
            ),
            {
                "id": UUID(int=1).hex if store.dialect == "sqlite" else UUID(int=1),
                "trace": ids[0].hex if store.dialect == "sqlite" else ids[0],
            },
        )
    upgrade(store)
    assert pending_traces(store) == 5
    assert found(store, "carry") == [LIBRARY[2].prompt, LIBRARY[0].prompt]
    assert found(store, min_score=30) == [LIBRARY[0].prompt]


def test_a_huge_trace_of_different_words_is_indexed(store):
    words = " ".join(f"w{n:x}" for n in range(6500))
    steps = tuple(f"{n} {words[:19_000]}" for n in range(40))
    many = " ".join(chr(0x4E00 + n % 20_000) + chr(0x4E00 + n // 7) for n in range(14_000))
    add_traces(store, [trace(many, many, {"words": words}, steps), trace("the last one")])
    assert update_index(store) == 2
    assert found(store, "last") == ["the last one"] and len(found(store, "w1f")) == 1


def test_each_way_to_narrow_a_list(store, library, root):
    build_dataset([LIBRARY[0], LIBRARY[4]], name="held", version="v1")
    add_score(store, library[0], score=20.0, criteria="baseline", details={})
    add_score(store, library[1], score=80.0, criteria="baseline", details={})
    add_rating(store, library[1], author="ann", stars=5, thumb=1)
    add_rating(store, library[2], author="ann", thumb=-1)

    def numbers(**asked):
        return sorted(
            [each.prompt for each in LIBRARY].index(said) for said in found(store, **asked)
        )

    assert numbers(source="ann") == [0, 2]
    assert numbers(dataset="held-v1") == [0, 4]
    assert numbers(min_score=50) == [1] and numbers(max_score=50) == [0]
    assert numbers(min_stars=4) == [1] and numbers(max_stars=4) == []
    assert numbers(thumb="up") == [1] and numbers(thumb="down") == [2]
    assert numbers(rated=True) == [1, 2] and numbers(rated=False) == [0, 3, 4]
    assert numbers(category="other") == [0, 1, 2, 3, 4] and numbers(trace_version="9") == []
    assert numbers(ids=library[3:]) == [3, 4]
    assert numbers(typed="carry", source="ann", rated=False) == [0]
    assert numbers(typed="2", dataset="held-v1") == [4]
    page = search_traces(store, TraceQuery(text="carry"))
    assert page.facets["source"] == {"ann": 2} and page.facets["dataset"] == {"held-v1": 1}
    assert page.facets["rating"] == {"down": 1, "unrated": 1}
    with pytest.raises(DatasetError, match="held-v1"):
        found(store, dataset="lost-v1")


def test_pages_and_neighbors_lead_along_the_same_list(store):
    ids = [each.id for each in add_traces(store, [trace(f"common {n}") for n in range(23)])]
    for number, id in enumerate(ids[:9]):
        add_score(store, id, score=float(number % 4), criteria="baseline", details={})
        add_rating(store, id, author="ann", stars=1 + number % 5)
    update_index(store)
    for typed in ("", "common"):
        for sort in ("newest", "oldest", "score", "-score", "stars", "relevance"):
            follow(store, TraceQuery(text=typed), sort, 9 if "s" in sort.strip("-")[:1] else 23)


def follow(store, query, sort, count):
    "Read a list page by page, and along the arrows of its traces."
    seen, after = [], ""
    while after is not None:
        page = search_traces(store, query, sort=sort, after=after, limit=5, facets=False)
        seen += [hit.found.id for hit in page.hits]
        after = page.next_after
    assert len(seen) == len(set(seen)) == count, sort
    for place in (0, 1, count - 1):
        before = seen[place - 1] if place else None
        following = (seen[place + 1 :] or [None])[0]
        assert neighbors(store, seen[place], query, sort) == (before, following), sort


# Ratings and versions


def marks(store, id):
    "The sum of the ratings of a trace."
    (hit,) = search_traces(store, TraceQuery(ids=[id], versions="all")).hits
    return hit.score, hit.stars, hit.thumbs, hit.ratings


def test_the_newest_rating_of_each_author_counts(store, library):
    id = library[0]
    add_rating(store, id, author="ann", stars=1, thumb=-1)
    add_rating(store, id, author="bob", stars=4)
    add_rating(store, id, author="ann", stars=5, note="on second thought")
    add_rating(store, id, author="ann", step=0, thumb=-1)
    assert marks(store, id) == (None, 4.5, 0, 2)
    add_score(store, id, score=12.5, criteria="baseline", details={})
    newest = next(each for each in list_ratings(store, id) if each.note)
    remove_rating(store, id, newest.id)
    assert marks(store, id) == (12.5, 2.5, -1, 2)
    with store.writing() as session:
        session.execute(delete(TraceRow).where(TraceRow.id == id))
    with store.reading() as session:
        assert session.query(RatingRow).count() == session.query(TraceMark).count() == 0


def test_an_edited_trace_takes_the_place_of_the_old_one(store, library, root):
    frozen = build_from_store(store, name="before", version="v1")
    mended = LIBRARY[0].model_copy(update={"final_answer": "forty-two"})
    made = add_version(store, library[0], Trace.model_validate(mended.model_dump()), author="ann")
    assert versions_of(store, library[0]).edits == (made.id,)
    assert found(store, "27") == [LIBRARY[0].prompt]
    assert search_traces(store, TraceQuery(text="27")).total == 1
    assert search_traces(store, TraceQuery(text="27", versions="all")).total == 2 or update_index(
        store
    )
    assert len(found(store, "27", versions="all")) == 2
    chosen = build_from_store(store, name="after", version="v1", filters={"search": {"text": "27"}})
    assert [each.final_answer for each in chosen] == ["forty-two"]
    assert [each.id for each in load_dataset(frozen.key)] == library
    with pytest.raises(TraceError, match="nothing of trace"):
        add_version(store, made.id, Trace.model_validate(mended.model_dump()), author="ann")
    with store.writing() as session:
        session.execute(delete(TraceRow).where(TraceRow.id == library[0]))
    assert versions_of(store, made.id).parent is None


# Datasets and preferences


def test_datasets_are_built_from_searches(store, library, root):
    add_rating(store, library[1], author="ann", stars=5)
    copy = add_traces(store, [LIBRARY[3]])[0].id

    def built(name, limit=None, **search):
        dataset = build_from_store(
            store, name=name, version="v1", filters={"source": ["ann", "bob"], "search": search}
            if search.pop("sourced", False) else {"search": search}, limit=limit,
        )  # fmt: skip
        assert dataset.manifest["filters"]["search"] == search
        return [each.prompt for each in dataset]

    assert built("words", text="carry") == [LIBRARY[0].prompt, LIBRARY[2].prompt]
    assert built("words-and-source", text="2", sourced=True) == [LIBRARY[1].prompt]
    assert built("newest", limit=1, text="carry") == [LIBRARY[2].prompt]
    assert built("rated", min_stars=4) == [LIBRARY[1].prompt]
    assert built("ticked", ids=[str(copy), str(library[0])]) == [
        LIBRARY[0].prompt,
        LIBRARY[3].prompt,
    ]
    assert built("ticked-newest", limit=1, ids=[str(copy)]) == [LIBRARY[3].prompt]
    with pytest.raises(DatasetError, match=r"filters\.search\.stars"):
        built("wrong", stars=4)
    with pytest.raises(DatasetError, match="no trace matches"):
        built("empty", text="xylophone")
    with pytest.raises(DatasetError, match="build_from_store"):
        build_dataset(LIBRARY, name="x", version="v1", filters={"search": {"text": "carry"}})


def test_ratings_become_preferences_that_the_pipeline_reads(store, tmp_path):
    said = [("15", 5), ("78", 1), ("14", 2), ("15.0", None), ("<answer>9</answer>", 1)]
    stored = add_traces(store, [trace("What is 7 + 8?", answer) for answer, _ in said])
    for each, (_, stars) in zip(stored, said, strict=True):
        if stars:
            add_rating(store, each.id, author="ann", stars=stars)
    (lonely,) = add_traces(store, [trace("Why?", "Because.")])
    add_rating(store, lonely.id, author="ann", thumb=1)
    for kind, count, shape in (("pairs", 2, PreferencePair), ("rated", 4, RatedAnswer)):
        path = tmp_path / f"{kind}.jsonl"
        records = preference_records(store, kind=kind, pairs_per_prompt=3, min_gap=2)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        read = read_preferences(path)
        assert read.refused == [] and len(read.items) == count
        assert all(isinstance(item, shape) for item in read.items)
    best = read_preferences(tmp_path / "pairs.jsonl").items[0]
    assert "<answer>15</answer>" in best.chosen and (best.chosen_score, best.rejected_score) == (
        5,
        1,
    )
    assert list(preference_records(store, TraceQuery(max_stars=1))) == []


# Over HTTP


def good(answer, status=200):
    assert answer.status_code == status, answer.text
    return answer.json()


def test_search_rate_and_edit_over_http(api):
    first, second = (good(api.post("/api/traces", json=sum_trace(n)), 201)["id"] for n in (3, 4))
    page = good(api.get("/api/traces/search", params={"text": "sum 3", "limit": 1}))
    assert page["total"] == 1 and page["data"][0]["id"] == first and page["pending"] == 0
    hit = page["data"][0]["found"]
    assert [hit["text"][a:b] for a, b in hit["marks"]] == ["3", "3"] and hit["part"] == "prompt"
    rating = good(
        api.post(f"/api/traces/{first}/ratings", json={"thumb": "up", "author": "ann"}), 201
    )
    assert rating["current"] and rating["thumb"] == "up" and rating["stars"] is None
    assert good(api.get("/api/traces/search?thumb=up"))["total"] == 1
    assert good(api.get("/api/traces/search?rated=false"))["data"][0]["id"] == second
    listed = good(api.delete(f"/api/traces/{first}/ratings/{rating['id']}"))
    assert listed == {"data": []}
    edited = sum_trace(3) | {"final_answer": "six"}
    made = good(api.post(f"/api/traces/{first}/versions?author=ann", json=edited), 201)
    context = good(api.get(f"/api/traces/{made['id']}/context"))
    assert context["parent"] == first and context["datasets"] == []
    assert good(api.get(f"/api/traces/{first}/context"))["datasets"] == ["sums-v1"]
    asked = {"dataset_name": "six", "dataset_version": "v1", "filters": {"search": {"text": "six"}}}
    assert good(api.post("/api/datasets/build", json=asked), 201)["trace_count"] == 1
    for method, path, body, status in (
        ("GET", "/search?text=-carry", None, 422),
        ("GET", "/search?sort=size", None, 422),
        ("GET", "/search?after=x", None, 422),
        ("GET", "/search?min_stars=nan", None, 422),
        ("POST", f"/{first}/ratings", {}, 422),
        ("POST", f"/{first}/ratings", {"stars": 9}, 422),
        ("POST", f"/{first}/ratings", {"note": "\x00"}, 422),
        ("POST", f"/{first}/versions", sum_trace(3), 422),
        ("POST", f"/{UUID(int=0)}/ratings", {"stars": 1}, 404),
        ("GET", f"/{UUID(int=0)}/ratings", None, 404),
        ("DELETE", f"/{first}/ratings/{rating['id']}", None, 404),
    ):
        answer = api.request(method, f"/api/traces{path}", json=body)
        assert answer.status_code == status and answer.json()["detail"], (path, answer.text)


def test_a_search_sees_what_was_stored_a_moment_ago(api):
    for number in range(5):
        good(api.post("/api/traces", json=sum_trace(100 + number)), 201)
        page = good(api.get("/api/traces/search", params={"text": f"{100 + number}"}))
        assert page["total"] + page["pending"] == 1
