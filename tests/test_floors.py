"The floors of the house: a package imports only from those below its own, and nothing in a circle."

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "tunix_rt"
FLOORS = (
    {"core"},
    {"models", "runs", "traces"},
    {"inference", "training", "data", "scoring"},
    {"kaggle", "store", "evaluation"},
    {"rewards", "jobs"},
    {"rl", "tracking"},
    {"registry"},
    {"api"},
    {"post_training"},
    {"preferences", "lm_eval", "batch"},
    {"tuning"},
    {"serve"},
    {"client", "cli"},
)
LEVEL = {package: level for level, packages in enumerate(FLOORS) for package in packages}
KNOWN: set[tuple[str, str]] = set()  # Imports that still go up


def modules() -> dict[str, set[str]]:
    "Each module with the modules of the package that it imports, wherever in its text."
    files = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if "migrations" not in path.parts and path.name not in ("__init__.py", "_modidx.py")
    }
    return {name: imported(name, path, set(files)) for name, path in files.items()}


def imported(name: str, path: Path, known: set[str]) -> set[str]:
    "The modules that one file imports."
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("tunix_rt.") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = name.split(".")[: -node.level]
                base = ".".join([*above, *filter(None, [base])])
            base = base.removeprefix("tunix_rt.")
            found |= {base} | {f"{base}.{alias.name}".lstrip(".") for alias in node.names}
    return found & known


IMPORTS = modules()


def test_every_package_has_a_floor():
    assert {name.split(".")[0] for name in IMPORTS} == set(LEVEL)


def test_no_import_goes_up():
    up = {
        (name, other)
        for name, others in IMPORTS.items()
        for other in others
        if (here := name.split(".")[0]) != (there := other.split(".")[0])
        and LEVEL[there] >= LEVEL[here]
    }
    assert up == KNOWN


def reached(name: str) -> set[str]:
    "All modules that one imports, straight or through others."
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        new = IMPORTS[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def test_no_module_imports_itself_through_others():
    assert [name for name in IMPORTS if name in reached(name)] == []


def numbers() -> dict[str, dict[str, int]]:
    "The number of each module's notebook, by package."
    found: dict[str, dict[str, int]] = {}
    for path in (PACKAGE.parent / "nbs").rglob("[0-9]*.ipynb"):
        name = re.search(r"#\| default_exp (\S+?)[\"\\]", path.read_text(encoding="utf-8"))
        if name:
            found.setdefault(str(path.parent), {})[name[1]] = int(path.name[:2])
    return found


def test_notebooks_are_numbered_in_reading_order_dependencies_first():
    for folder, known in numbers().items():
        assert len(set(known.values())) == len(known), f"two notebooks of {folder} share a number"
        late = [
            (name, other)
            for name in known
            for other in IMPORTS.get(name, set()) & known.keys()
            if known[other] >= known[name]
        ]
        assert late == [], folder
