"Tokens with names and roles, what they may do, and the log of what was done."

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from serving import TOKEN, serving, sum_trace

from tunix_rt.core.errors import StoreError
from tunix_rt.serve.auth import COOKIE, role_needed
from tunix_rt.store.audit import list_audit
from tunix_rt.store.tables import IdempotentReply
from tunix_rt.store.tokens import create_token, revoke_token


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture
def holders(store, root):
    "An app with the token of the settings, and one named token for each role."
    with serving(store, token=TOKEN) as client:
        made = {
            role: create_token(store, name, role, by="tests")[1] for role, name in NAMES.items()
        }
        yield client, made


NAMES = {"read": "reader", "write": "writer", "admin": "boss"}
ROLES = tuple(NAMES)
DOINGS = [
    ("GET", "/api/traces", None, "read"),
    ("GET", "/queue/new", None, "read"),
    ("POST", "/api/tunix/sft/export", {"dataset_key": "sums-v1"}, "read"),
    ("POST", "/queue/dataset/by-hand", None, "read"),
    ("POST", "/api/traces", sum_trace(1), "write"),
    ("POST", "/api/tunix/run", {"dataset_key": "sums-v1", "model_id": "tiny"}, "write"),
    ("DELETE", "/api/models/x/aliases/y", None, "write"),
    ("GET", "/api/tokens", None, "admin"),
    ("POST", "/api/tokens", {"name": "other", "role": "admin"}, "admin"),
    ("GET", "/api/audit", None, "admin"),
    ("GET", "/tokens", None, "admin"),
    ("GET", "/audit", None, "admin"),
]


def test_a_role_may_do_what_is_below_it(holders):
    client, made = holders
    for method, path, body, needed in DOINGS:
        assert role_needed(method, path) == needed
        for role in ROLES:
            answer = client.request(method, path, json=body, headers=bearer(made[role]))
            enough = ROLES.index(role) >= ROLES.index(needed)
            assert (answer.status_code == 403) is not enough, (role, method, path, answer.text)
            if not enough:
                assert f"the role {role}, and this needs {needed}" in answer.json()["detail"]
    assert client.get("/api/traces").status_code == 401
    assert client.get("/api/tokens", headers=bearer(TOKEN)).status_code == 200


def test_a_revoked_token_is_refused(store, holders, monkeypatch):
    client, made = holders
    assert client.get("/api/traces", headers=bearer(made["read"])).status_code == 200
    revoke_token(store, "reader", by="tests")
    with monkeypatch.context() as patch:
        patch.setattr("tunix_rt.serve.auth.FRESH", 0)
        assert client.get("/api/traces", headers=bearer(made["read"])).status_code == 401
    again = client.request("DELETE", "/api/tokens/writer", headers=bearer(TOKEN))
    assert again.json()["revoked_by"] == "TUNIX_RT_TOKEN"
    assert client.get("/api/traces", headers=bearer(made["write"])).status_code == 401


def test_a_new_token_works_at_once_and_is_shown_once(holders):
    client, made = holders
    asked = {"name": "build-server", "role": "write"}
    answer = client.post("/api/tokens", json=asked, headers=bearer(made["admin"]))
    assert answer.status_code == 201 and answer.json()["created_by"] == "boss"
    secret = answer.json()["token"]
    assert client.get("/api/traces", headers=bearer(secret)).status_code == 200
    listed = client.get("/api/tokens", headers=bearer(TOKEN))
    assert secret not in listed.text and len(listed.json()) == 4
    assert client.post("/api/tokens", json=asked, headers=bearer(TOKEN)).status_code == 409
    odd = asked | {"rolle": "admin"}
    refused = client.post("/api/tokens", json=odd, headers=bearer(TOKEN))
    assert refused.status_code == 422 and "did you mean 'role'" in refused.text


def test_a_browser_signs_in_with_a_named_token(holders):
    client, made = holders
    form = {"token": made["write"], "next": "/runs"}
    answer = client.post("/login", data=form, follow_redirects=False)
    assert answer.status_code == 303 and made["write"] not in answer.headers["set-cookie"]
    assert COOKIE in client.cookies
    assert client.get("/runs").status_code == 200
    assert client.get("/tokens").status_code == 403
    wrong = client.post("/login", data={"token": "trt_guess"})
    assert wrong.status_code == 403


def test_one_named_token_is_enough_to_close_a_server(store, root):
    with serving(store) as client:
        assert client.get("/api/traces").status_code == 200
    _, secret = create_token(store, "ada", "admin", by="tests")
    with serving(store) as client:
        assert client.get("/api/traces").status_code == 401
        assert client.get("/api/traces", headers=bearer(secret)).status_code == 200
        assert client.get("/api/health").status_code == 200
        assert client.get("/login").status_code == 200


def change_things(client, headers) -> str:
    "Change something, read something, and be refused; give the id of the run."
    for _ in range(3):
        client.post("/api/traces", json=sum_trace(1), headers=headers)
    client.post("/api/traces/batch", json=[sum_trace(n) for n in (2, 3)], headers=headers)
    asked = {"dataset_name": "all", "dataset_version": "v1"}
    for _ in range(2):
        key = {**headers, "Idempotency-Key": "k1"}
        assert client.post("/api/datasets/build", json=asked, headers=key).status_code == 201
    assert client.post("/api/datasets/build", json={}, headers=headers).status_code == 422
    client.post("/api/tunix/sft/export", json={"dataset_key": "all-v1"}, headers=headers)
    order = {"dataset_key": "all-v1", "model_id": "tiny"}
    answer = client.post("/api/tunix/run?mode=async", json=order, headers=headers)
    client.post("/queue/dataset", data={"dataset_name": "x"}, headers=headers)
    return answer.json()["run_id"]


def test_what_was_changed_is_in_the_log(store, root):
    "Once each, by whom, and nothing that was refused or only read."
    _, secret = create_token(store, "writer", "write", by="tests")
    with serving(store, token=TOKEN) as client:
        run = change_things(client, bearer(secret))
    found = {(each.action, each.target): each for each in list_audit(store, actor="writer").entries}
    assert found["create_trace", None].count == 3 and found["create_traces", None].count == 2
    assert found["build_dataset", "all-v1"].status == 201
    assert found["execute_tunix_run", run].role == "write"
    assert len(found) == 4 and all(each.address for each in found.values())


def test_the_log_is_read_by_administrators(holders):
    client, made = holders
    client.post("/api/models", json={"name": "adder"}, headers=bearer(made["write"]))
    told = client.get("/api/audit?action=create_model_artifact", headers=bearer(TOKEN)).json()
    (entry,) = told["data"]
    assert (entry["actor"], entry["status"], told["next_before"]) == ("writer", 201, None)
    page = client.get("/audit?actor=writer", headers=bearer(TOKEN)).text
    assert "create model artifact" in page and "writer" in page


def test_nobody_is_let_in_before_the_tokens_are_known(store, root, monkeypatch):
    "A database that is away at the start looks like one without tokens, and is none."
    _, secret = create_token(store, "ada", "admin", by="tests")

    def away(store):
        raise StoreError("the database is away")

    with monkeypatch.context() as patch:
        patch.setattr("tunix_rt.serve.auth.active_tokens", away)
        with serving(store) as client:
            assert client.get("/api/datasets").status_code == 503
            asked = {"name": "mallory", "role": "admin"}
            assert client.post("/api/tokens", json=asked).status_code == 503
            assert client.get("/api/health").status_code == 200
            patch.undo()
            ends = time.monotonic() + 10  # a reading that began before is still under way
            while (found := client.get("/api/datasets")).status_code == 503:
                assert time.monotonic() < ends
            assert found.status_code == 401
            assert client.get("/api/datasets", headers=bearer(secret)).status_code == 200
            patch.setattr("tunix_rt.serve.auth.active_tokens", away)
            patch.setattr("tunix_rt.serve.auth.FRESH", 0)
            assert client.get("/api/datasets").status_code == 401
            assert client.get("/api/datasets", headers=bearer(secret)).status_code == 200


def test_a_health_check_waits_for_no_token(store, root, monkeypatch):
    create_token(store, "ada", "admin", by="tests")
    with serving(store) as client, monkeypatch.context() as patch:
        patch.setattr("tunix_rt.serve.auth.FRESH", 0)
        patch.setattr("tunix_rt.serve.auth.active_tokens", lambda store: time.sleep(2))
        begun = time.monotonic()
        assert client.get("/api/health").status_code == 200
        assert time.monotonic() - begun < 1


def test_a_new_token_is_in_no_stored_answer(store, holders):
    client, _ = holders
    key = {**bearer(TOKEN), "Idempotency-Key": "k1"}
    for path, body in (("/api/tokens", "json"), ("/tokens", "data")):
        asked = {body: {"name": f"keyed-{body}", "role": "read"}}
        assert "trt_" in client.post(path, headers=key, **asked).text
    with store.reading() as session:
        assert session.query(IdempotentReply).all() == []


def test_who_signed_in_is_in_the_log(store, holders):
    client, made = holders
    client.post("/login", data={"token": made["write"]})
    (entry,) = list_audit(store, action="login_form").entries
    assert (entry.actor, entry.role) == ("writer", "write")


def test_a_log_that_waits_for_the_lock_keeps_no_reader_out(store, root):
    "Eight requests write a file and no row, but for the audit log, while somebody holds the lock."
    if store.dialect != "sqlite":
        pytest.skip("Postgres has no such lock")
    with serving(store) as client:

        def build(_):
            asked = {"dataset_name": f"b{uuid4().hex[:8]}", "dataset_version": "v1"}
            return client.post("/api/datasets/build", json=asked).status_code

        client.post("/api/traces", json=sum_trace(1))
        store.turn.acquire()
        release = threading.Timer(3, store.turn.release)
        release.start()
        with ThreadPoolExecutor(8) as pool:
            builds = [pool.submit(build, n) for n in range(8)]
            time.sleep(1.5)
            begun = time.monotonic()
            assert client.get("/api/traces").status_code == 200
            assert time.monotonic() - begun < 1
            assert {each.result() for each in builds} == {201}
        release.join()
