"""Write the client's functions from the routes of the server: `tunix_rt/client/endpoints.py`.

A route says everything that a call needs: name, method, path, parameters with types and defaults,
body, answer, docstring. A function that does more than its route says is written by hand in
nbs/client/20_custom.ipynb, and left out here.

    python .ci/endpoints.py    # after .ci/export.py; .ci/sync runs both
"""

import ast
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from annotated_types import Le  # noqa: E402
from fastapi.routing import APIRoute  # noqa: E402
from pydantic import BaseModel  # noqa: E402

CUSTOM = ROOT / "tunix_rt" / "client" / "custom.py"
TARGET = ROOT / "tunix_rt" / "client" / "endpoints.py"
HEADER = '''"""One function for each route of the server that needs no code of its own."""

# Written by .ci/endpoints.py. DO NOT EDIT! Change the route, then run `sh .ci/sync`.

from __future__ import annotations
'''
TRANSPORT = "tunix_rt.client.transport"
NOTES = {  # what a name means in every route; the others say it in Query(description=...)
    "alias": 'Name of an alias, such as "champion"',
    "base": "Id of a trace",
    "client": "Server to call",
    "dataset_key": 'Key of a dataset, such as "golden-v2"',
    "filename": "Name as listed",
    "format": "Shape of the records",
    "key": "Idempotency key, the same for a repeat of the request; made up by default",
    "limit": "Maximum number of entries",
    "offset": "Entries to skip",
    "other": "Id of another trace",
    "to": "File to create or to replace, by rename",
}


class Parameter(NamedTuple):
    "A parameter of a function."

    name: str
    kind: str  # annotation as source
    note: str
    default: str = ""  # default as source; empty where there is none

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}" + (f" = {self.default}" if self.default else "")


class Answer(NamedTuple):
    "What a function returns, and the function of the transport that reads it."

    kind: str  # annotation as source
    call: str  # name of that function
    item: str = ""  # class to read, where it takes one
    around: str = "{}"  # source around the call
    note: str = ""  # what the annotation does not say


class Imports(defaultdict):
    "The names that a module imports, by the module that they come from."

    def __init__(self) -> None:
        super().__init__(set)

    def name(self, module: str, name: str) -> str:
        "Import a name, and hand it back."
        if module != "builtins":
            self[module].add(name)
        return name

    def spell(self, kind: Any) -> str:
        "Write a type as an annotation, without what only the server checks."
        origin, args = get_origin(kind), get_args(kind)
        if kind in (None, NoneType):
            return "None"
        if origin is Annotated:
            return self.spell(args[0])
        if origin in (Union, UnionType):
            return " | ".join(map(self.spell, args))
        if origin is Literal:
            return self.name("typing", "Literal") + f"[{', '.join(map(json.dumps, args))}]"
        base = origin or kind
        name = self.name(base.__module__, base.__name__)
        return f"{name}[{', '.join(map(self.spell, args))}]" if args else name

    def __str__(self) -> str:
        ours = sorted(module for module in self if module.startswith("tunix_rt"))
        others = sorted(self.keys() - set(ours))
        lines = [f"from {each} import {', '.join(sorted(self[each]))}" for each in others + ours]
        return "\n".join([*lines[: len(others)], "", *lines[len(others) :]])


def is_model(kind: Any) -> bool:
    "Tell whether a type is a pydantic model."
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def refuse(route: APIRoute, reason: str) -> ValueError:
    "Say why no function follows from a route, and what to do."
    return ValueError(
        f"{route.name} ({route.path}) {reason}, and no function follows from that; "
        "write one of the same name in nbs/client/20_custom.ipynb"
    )


def write_note(route: APIRoute, field: Any) -> str:
    "Say what a parameter of the path or the query is."
    name, info = field.name, field.field_info
    thing = name.removesuffix("_id").removesuffix("_key").replace("_", " ")
    if not info.is_required() and info.default is None:
        note = info.description or f"Filter on the {thing}"
    elif name.endswith("_id"):
        note = f"Id of a {thing}"
    elif not (note := NOTES.get(name) or info.description):
        raise ValueError(f"{route.name}: say what {name} is, with Query(description=...)")
    return note + "".join(f", up to {each.le}" for each in info.metadata if isinstance(each, Le))


def list_parameters(route: APIRoute, needs: Any, where: str, imports: Imports) -> list[Parameter]:
    "List the parameters in the path or the query, those that a dependency takes included."
    return [
        Parameter(
            field.name,
            imports.spell(field.field_info.annotation),
            write_note(route, field),
            "" if field.field_info.is_required() else repr(field.field_info.default),
        )
        for field in getattr(needs, where)
    ] + [
        parameter
        for each in needs.dependencies
        for parameter in list_parameters(route, each, where, imports)
    ]


def list_bodies(route: APIRoute, imports: Imports) -> list[Parameter]:
    "Describe the body as a parameter, if the route takes one."
    fields = [(field.name, field.field_info.annotation) for field in route.dependant.body_params]
    if len(fields) > 1 or not all(is_model(kind) for _, kind in fields):
        raise refuse(route, "takes a body that is not one model")
    needed = [
        [name for name, field in kind.model_fields.items() if field.is_required()]
        for _, kind in fields
    ]
    return [
        Parameter(
            name,
            imports.spell(kind),
            "Content of the request" + (f"; needs {', '.join(must)}" if must else ""),
        )
        for (name, kind), must in zip(fields, needed, strict=True)
    ]


def find_answer(route: APIRoute, imports: Imports) -> Answer:
    "Decide how to read what a route answers."
    kind, response = route.response_model, route.responses.get(200, {})
    media = next(iter(response.get("content", {"application/json": {}})))
    note = response.get("description", "")
    if media == "application/x-ndjson":
        row = f"dict[str, {imports.spell(Any)}]"
        rows = f"{imports.name('collections.abc', 'Iterator')}[{row}]"
        return Answer(rows, "stream_records", note=note)
    if media in ("application/zip", "application/octet-stream"):
        return Answer(imports.name("pathlib", "Path"), "download_file", note="Same as `to`")
    if media == "text/plain":
        return Answer("str", "send", around="{}.text", note=note)
    if media != "application/json":
        raise refuse(route, f"answers with {media}")
    if is_model(kind):
        return Answer(imports.spell(kind), "request", imports.spell(kind))
    if get_origin(kind) is list and is_model(get_args(kind)[0]):
        return Answer(imports.spell(kind), "request_list", imports.spell(get_args(kind)[0]))
    if get_origin(kind) in (list, dict):
        around = f"{get_origin(kind).__name__}({{}}.json())"
        return Answer(imports.spell(kind), "send", around=around)
    raise refuse(route, f"answers with {kind}")


def write_path(route: APIRoute, imports: Imports) -> str:
    "Write the path of a route, with its parameters filled in."
    if "{" not in route.path:
        return f'"{route.path}"'
    quote = imports.name(TRANSPORT, "quote_segment")
    path = re.sub(r"\{(\w+):path\}", rf"{{{quote}(\1, '/')}}", route.path)
    return 'f"' + re.sub(r"\{(\w+)\}", rf"{{{quote}(\1)}}", path) + '"'


def write_function(route: APIRoute, imports: Imports) -> str:
    "Write the function that calls a route."
    (method,), answer = route.methods, find_answer(route, imports)
    path = list_parameters(route, route.dependant, "path_params", imports)
    query = list_parameters(route, route.dependant, "query_params", imports)
    body = list_bodies(route, imports)
    saves = answer.call == "download_file"
    keyed = method != "GET" and answer.call != "stream_records"

    parameters = [Parameter("client", imports.name(TRANSPORT, "Client"), NOTES["client"])]
    parameters += path + body + query
    parameters += [Parameter("to", "Path", NOTES["to"])] * saves
    parameters += [Parameter("key", "str | None", NOTES["key"], "None")] * keyed
    parameters.sort(key=lambda each: bool(each.default))

    words = ["client", answer.item, "" if saves else f'"{method}"', write_path(route, imports)]
    pairs = ", ".join(f'"{each.name}": {each.name}' for each in query)
    words += [f"query={{{pairs}}}"] * bool(query)
    words += [f"body={each.name}" for each in body] + ["to"] * saves + ["key=key"] * keyed
    call = f"{imports.name(TRANSPORT, answer.call)}({', '.join(filter(None, words))})"

    notes = "\n".join(f"        {each.name}: {each.note}" for each in parameters)
    returns = f"\n\n    Returns:\n        {answer.note}" if answer.note else ""
    return f'''def {route.name}({", ".join(map(str, parameters))},) -> {answer.kind}:
    """{route.description}

    Args:
{notes}{returns}
    """
    return {answer.around.format(call)}
'''


def list_routes() -> list[APIRoute]:
    "List the routes that the document of the server shows."
    from tunix_rt.serve.api_router import ROUTERS

    routes = [route for module in ROUTERS for route in module.router.routes]
    return [each for each in routes if isinstance(each, APIRoute) and each.include_in_schema]


def write_module(every: Iterable[APIRoute]) -> str:
    "Write the module with a function for each route that is not written by hand."
    tree, imports = ast.parse(CUSTOM.read_text(encoding="utf-8")), Imports()
    custom = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    routes = [route for route in every if route.name not in custom]
    functions = [write_function(route, imports) for route in routes]
    bodies = {body.kind for route in routes for body in list_bodies(route, imports)}
    names = [*sorted(bodies), *(route.name for route in routes)]
    source = "\n\n".join([HEADER, str(imports), f"__all__ = {json.dumps(names)}", *functions])
    command = [sys.executable, "-m", "ruff", "format", "--quiet", f"--stdin-filename={TARGET}", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SyntaxError(f"{done.stderr}\n{source}")
    return done.stdout


def main() -> None:
    "Write the module, if that changes it."
    source = write_module(list_routes())
    if not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != source:
        TARGET.write_text(source, encoding="utf-8")


if __name__ == "__main__":
    main()
