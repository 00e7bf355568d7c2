"One name means one thing: two modules export a name only if they mean the same, or it is listed."

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parent.parent / "tunix_rt"

HTTP = ("client.", "serve.routers.", "serve.rediai")  # Both ends of one operation
FRONT = ("api", "post_training", "preferences")  # `rt.generate` calls the engine's

# Names that two modules may have, and why. Everything else is found by rule, see `excused`.
ALLOWED = {
    "Step": "of reasoning, and of training: the field says step to both",
    "main": "each command's entry point",
    "reason_to_stop": "one question that both training loops ask, each of its own state",
    "step_validity": "a scorer, and the reward that pays for it",
    "token_logprobs": "of tokens that are sampled, and of tokens that are trained on",
}


class Export(NamedTuple):
    "A name that a module exports."

    module: str  # Without "tunix_rt."
    kind: str  # "class", "function" or "variable"
    command: bool  # True for a command of the command line


def commands() -> set[str]:
    "Name the commands that the command line is assembled of."
    tree = ast.parse((PACKAGE / "cli" / "app.py").read_text("utf-8"))
    (sections,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "SECTIONS"
    )
    nodes = list(ast.walk(sections)) if sections else []
    methods = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return methods | {node.id for node in nodes if isinstance(node, ast.Name)}


COMMANDS = commands()


def exported(module: str, tree: ast.Module) -> Iterator[tuple[str, Export]]:
    "List what a module both defines and exports."
    defined: dict[str, Export] = {}
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            command = module.startswith("cli.") and bool(
                node.decorator_list or node.name in COMMANDS
            )
            defined[node.name] = Export(module, "function", command)
        elif isinstance(node, ast.ClassDef):
            defined[node.name] = Export(module, "class", False)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    defined.setdefault(target.id, Export(module, "variable", False))
                    if target.id == "__all__":
                        names = ast.literal_eval(node.value)  # type: ignore[arg-type]
    return ((name, defined[name]) for name in names if name in defined)


def imports(module: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    "List the modules of the package and the names that a module imports from them."
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])]).removeprefix("tunix_rt.")
            yield from ((base, alias.name) for alias in node.names)


TREES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text("utf-8"))
    for path in PACKAGE.rglob("*.py")
    if "migrations" not in path.parts and path.name not in ("__init__.py", "_modidx.py")
}
IMPORTED = {pair for module, tree in TREES.items() for pair in imports(module, tree)}
EXPORTS: dict[str, list[Export]] = defaultdict(list)
for module, tree in TREES.items():
    for name, export in exported(module, tree):
        EXPORTS[name].append(export)


def meanings(name: str) -> list[str]:
    """The modules that mean something of their own by a name.

    Both ends of an HTTP operation mean what the function means that does it. A command is named
    after what it does, and so is what the front door offers. A variable that no other module
    imports means something in its own module only.
    """
    found = [
        each.module
        for each in EXPORTS[name]
        if not each.command
        and not each.module.startswith(HTTP)
        and each.module not in FRONT
        and (each.kind != "variable" or (each.module, name) in IMPORTED)
    ]
    return sorted(found)


def test_one_name_means_one_thing():
    doubles = {name: meanings(name) for name in EXPORTS if len(meanings(name)) > 1}
    assert set(doubles) - set(ALLOWED) == set(), doubles


def test_every_exception_is_needed():
    assert [name for name in ALLOWED if len(meanings(name)) < 2] == []
