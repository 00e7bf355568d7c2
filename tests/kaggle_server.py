"""A stand-in of Kaggle's HTTP API on this machine, for Kaggle's own client to talk to.

The client goes to `http://localhost` when KAGGLE_API_ENVIRONMENT says LOCALHOST, on port 80, which
is not ours. So this server is its HTTP proxy: requests arrive with whole addresses, on any port.
"""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

KEY = "0123456789abcdef0123456789abcdef"
BASIC = "Basic " + base64.b64encode(f"ada:{KEY}".encode()).decode()


class Kaggle:
    "What the server knows, and what it was asked."

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}  # Token to what was uploaded
        self.names: dict[str, str] = {}  # Token to the name of the file
        self.datasets: dict[str, dict[str, Any]] = {}
        self.models: set[str] = set()
        self.refused: set[str] = set()  # Names of files that the store does not take
        self.unknown: list[str] = []  # Model sources that a notebook is told are unknown
        self.output: Path | None = None
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"kaggle": self})
        )
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def variables(self, home: Path) -> dict[str, str]:
        "What leads Kaggle's client here."
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "KAGGLE_USERNAME": "ada",
            "KAGGLE_KEY": KEY,
            "KAGGLE_CONFIG_DIR": str(home),
            "HTTP_PROXY": self.address,
            "http_proxy": self.address,
            "NO_PROXY": "",
            "no_proxy": "",
        }

    def last(self, name: str) -> dict[str, Any]:
        "What was sent with the last call of a name."
        return next(body for call, body in reversed(self.calls) if call == name)

    def names_of(self, files: list[dict[str, Any]]) -> set[str]:
        "Names of the files that an upload refers to by token."
        return {self.names[item["token"]] for item in files}


class _Refused(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    kaggle: Kaggle

    def log_message(self, *words: Any) -> None:
        pass

    def _answer(self, code: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        token = urlsplit(self.path).path.rsplit("/", 1)[-1]
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.kaggle.names[token] in self.kaggle.refused:
            return self._answer(400, b"{}")
        self.kaggle.files[token] = content
        self._answer(200, b"{}")

    def do_GET(self) -> None:
        assert self.kaggle.output is not None
        name = unquote(urlsplit(self.path).path).removeprefix("/output/")
        self._answer(200, (self.kaggle.output / name).read_bytes(), "application/octet-stream")

    def do_POST(self) -> None:
        service, name = urlsplit(self.path).path.rsplit("/", 2)[-2:]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        self.kaggle.calls.append((name, body))
        if self.headers.get("Authorization") != BASIC:
            return self._answer(401, b'{"code": 401, "message": "who are you?"}')
        try:
            found = getattr(self, name)(body)
        except _Refused:
            return self._answer(404, b'{"code": 404, "message": "not found"}')
        self._answer(200, json.dumps(found).encode())

    def StartBlobUpload(self, body: dict[str, Any]) -> dict[str, Any]:
        token = f"token-{len(self.kaggle.names)}"
        self.kaggle.names[token] = body["name"]
        return {"token": token, "createUrl": f"{self.kaggle.address}/upload/{token}"}

    def GetDatasetStatus(self, body: dict[str, Any]) -> dict[str, Any]:
        if f"{body['ownerSlug']}/{body['datasetSlug']}" not in self.kaggle.datasets:
            raise _Refused
        return {"status": "READY"}

    def CreateDataset(self, body: dict[str, Any]) -> dict[str, Any]:
        ref = f"{body['ownerSlug']}/{body['slug']}"
        self.kaggle.datasets[ref] = body
        return {"ref": ref, "url": f"https://www.kaggle.com/datasets/{ref}", "status": "ok"}

    def CreateDatasetVersion(self, body: dict[str, Any]) -> dict[str, Any]:
        ref = f"{body['ownerSlug']}/{body['datasetSlug']}"
        return {"ref": ref, "url": f"https://www.kaggle.com/datasets/{ref}", "status": "ok"}

    def SaveKernel(self, body: dict[str, Any]) -> dict[str, Any]:
        url = f"https://www.kaggle.com/code/{body['slug']}"
        unknown = {"invalidModelSources": self.kaggle.unknown}
        return {"ref": body["slug"], "url": url, "versionNumber": 1, **unknown}

    def GetKernelSessionStatus(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"status": "COMPLETE"}

    def ListKernelSessionOutput(self, body: dict[str, Any]) -> dict[str, Any]:
        assert self.kaggle.output is not None
        found = sorted(path for path in self.kaggle.output.rglob("[!.]*") if path.is_file())
        names = [path.relative_to(self.kaggle.output).as_posix() for path in found]
        files = [
            {"fileName": name, "url": f"{self.kaggle.address}/output/{name}"} for name in names
        ]
        return {"files": files, "log": "what it printed"}

    def GetModel(self, body: dict[str, Any]) -> dict[str, Any]:
        if f"{body['ownerSlug']}/{body['modelSlug']}" not in self.kaggle.models:
            raise _Refused
        return {"id": 1}

    def GetModelInstance(self, body: dict[str, Any]) -> dict[str, Any]:
        raise _Refused

    def CreateModel(self, body: dict[str, Any]) -> dict[str, Any]:
        self.kaggle.models.add(f"{body['ownerSlug']}/{body['slug']}")
        return {"id": 1, "url": "https://www.kaggle.com/models/ada"}

    def CreateModelInstance(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"id": 2, "url": "https://www.kaggle.com/models/ada"}
