"""Build the documentation site from the notebooks, as they were saved: nothing is executed.

Each notebook becomes a page, with its pictures beside it; folders come in reading order. A link to
a notebook leads to its page, a link to another file to the repository, and one that leads nowhere
fails the build. Diagrams are drawn by mermaid, which npm fetches; without npm they stay text.

    python .ci/docs.py            # into _site
"""

import base64
import logging
import os
import re
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path

import nbformat
from contents import FOLDERS, NBS, ROOT, Page, list_pages
from mkdocs.commands.build import build
from mkdocs.config import load_config
from readme import PAGES

STAGE = ROOT / "_proc" / "docs"  # docs_dir in mkdocs.yml
MERMAID = "mermaid@11.12.0"
INDEX = NBS / "index.ipynb"
PROJECT = ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
APART = ["guides", "pipelines"]  # folders with a tab of their own; the others are the library
PICTURES = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg"}
HIDDEN = re.compile(r"^#\|\s*hide\b", re.MULTILINE)
SILENT = re.compile(r"^#\|\s*echo:\s*false\b", re.MULTILINE)
COLOR = re.compile(r"\x1b\[[0-9;]*m")
LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)")
STYLE = """
.md-grid { max-width: 72rem; }
.output { overflow-x: auto; margin: 0 0 1em; }
.output img, .output svg, img.output { max-width: 100%; }
.md-typeset .output > pre { margin: 0; }
.output table.dataframe { border-collapse: collapse; border: 0; font-size: .7rem; }
.output table.dataframe :is(th, td) { border: 0; padding: .2rem .6rem; text-align: right; }
.output table.dataframe tr { border-bottom: .05rem solid var(--md-default-fg-color--lightest); }
.md-typeset .output > pre > code {
  background: none; border-left: .15rem solid var(--md-default-fg-color--lightest);
}
"""


def list_targets(pages: list[Page]) -> dict[Path, str]:
    "Name the page that each source file becomes: nbs/training/20_loss.ipynb, training/loss.md."
    targets = {}
    for page in pages:
        name = re.sub(r"^\d+_", "", page.path.stem)
        targets[page.path] = page.path.relative_to(NBS).with_name(f"{name}.md").as_posix()
    if len({*targets.values()}) < len(targets):
        raise SystemExit("two notebooks of one folder differ in their numbers only; rename one")
    guides = {ROOT / page: targets[ROOT / nb] for nb, page in PAGES.items() if ROOT / nb != INDEX}
    project = {ROOT / name: name.lower() for name in PROJECT if (ROOT / name).is_file()}
    return {**targets, **guides, **project, ROOT / "README.md": "index.md", INDEX: "index.md"}


class Stage:
    "Writes pages where mkdocs reads them."

    def __init__(self, targets: dict[Path, str], repository: str, mermaid: bool):
        self.targets, self.repository, self.mermaid = targets, repository, mermaid

    def relink(self, text: str, source: Path) -> str:
        "Let the links of a source file lead to pages, and to the repository for anything else."
        here = Path(self.targets[source]).parent

        def moved(link: re.Match[str]) -> str:
            aim, anchor = (source.parent / link[1]).resolve(), link[2] or ""
            if aim in self.targets:
                return f"]({os.path.relpath(self.targets[aim], here)}{anchor})"
            if aim.is_file() and aim.suffix in (".png", ".svg", ".jpg"):
                copy = STAGE / "pictures" / aim.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(aim, copy)
                return f"]({os.path.relpath(copy.relative_to(STAGE), here)})"
            if aim.exists() and aim.is_relative_to(ROOT):
                return f"]({self.address(aim)}{anchor})"
            return link[0]

        return LINK.sub(moved, text)

    def address(self, path: Path) -> str:
        "Say where a file or a folder is in the repository."
        kind = "tree" if path.is_dir() else "blob"
        return f"{self.repository}/{kind}/main/{path.relative_to(ROOT).as_posix()}"

    def write(self, target: str, parts: list[str]) -> None:
        "Write one page."
        text = "\n\n".join(filter(None, parts)) + "\n"
        if not self.mermaid:
            text = text.replace("```mermaid", "```text")
        elif "```mermaid" in text:
            depth = len(Path(target).parts) - target.endswith("index.md")
            text += f'\n<script src="{"../" * depth}js/mermaid.min.js"></script>\n'
        (STAGE / target).parent.mkdir(parents=True, exist_ok=True)
        (STAGE / target).write_text(text, encoding="utf-8")

    def write_file(self, source: Path) -> None:
        "Write the page of a Markdown file."
        self.write(self.targets[source], [self.relink(source.read_text("utf-8"), source)])

    def write_notebook(self, page: Page) -> None:
        "Write the page of a notebook."
        parts, target = [], self.targets[page.path]
        for cell in nbformat.read(page.path, as_version=4).cells:
            if HIDDEN.search(cell.source):
                continue
            if cell.cell_type == "markdown":
                parts.append(self.relink(cell.source, page.path))
                continue
            code = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE).strip()
            if code and not SILENT.search(cell.source):
                parts.append(f"````python\n{code}\n````")
            for number, output in enumerate(cell.outputs):
                beside = (STAGE / target).parent / "images" / f"{page.path.stem}-{cell.id}-{number}"
                parts.append(show_output(output, beside))
        source = f"[{page.path.relative_to(ROOT).as_posix()}]({self.address(page.path)})"
        if page.module:
            parts.insert(1, f"Module `tunix_rt.{page.module}`, written in {source}.")
        else:
            parts.append(f"This page is {source}.")
        self.write(target, parts)

    def write_folder(self, name: str, pages: list[Page]) -> list:
        "Write the first page of a folder, and return its part of the navigation."
        links = [
            f"- [{p.title}]({os.path.relpath(self.targets[p.path], name)}): {p.gain}" for p in pages
        ]
        self.write(
            f"{name}/index.md",
            [f"# {name}", FOLDERS.get(name, "").capitalize() + ".", "\n".join(links)],
        )
        return [f"{name}/index.md", *self.entries(pages)]

    def entries(self, pages: list[Page]) -> list:
        "List pages for the navigation."
        return [{page.title: self.targets[page.path]} for page in pages]


def show_output(
    output: nbformat.NotebookNode,
    picture: Path,  # where a picture goes; its ending is added
) -> str:
    "Show a saved output in the richest form that a page can hold."
    data = output.get("data", {})
    for kind, ending in PICTURES.items():
        if kind in data:
            path = picture.with_suffix(f".{ending}")
            path.parent.mkdir(parents=True, exist_ok=True)
            raw = data[kind]
            path.write_bytes(raw.encode() if ending == "svg" else base64.b64decode(raw))
            return f"![](images/{path.name}){{ .output }}"
    if "text/html" in data:
        return f'<div class="output">\n{data["text/html"].strip()}\n</div>'
    if "text/markdown" in data:
        return data["text/markdown"]
    text = output.get("text") or data.get("text/plain") or "\n".join(output.get("traceback", []))
    shown = escape(COLOR.sub("", text).rstrip())
    return f'<div class="output"><pre><code>{shown}</code></pre></div>' if shown else ""


def fetch_mermaid(folder: Path) -> bool:
    "Fetch the library that draws diagrams, and say whether it is there."
    folder.mkdir(parents=True)
    command = ["npm", "pack", MERMAID, "--silent", "--pack-destination", str(folder)]
    if not shutil.which("npm") or subprocess.run(command, capture_output=True).returncode:
        print("npm did not fetch mermaid; diagrams stay text", file=sys.stderr)
        return False
    (archive,) = folder.glob("*.tgz")
    shutil.unpack_archive(archive, folder / "unpacked", filter="data")
    shutil.move(folder / "unpacked/package/dist/mermaid.min.js", folder)
    shutil.rmtree(folder / "unpacked")
    archive.unlink()
    return True


def write_pages(repository: str) -> list:
    "Write all pages, and return the navigation."
    shutil.rmtree(STAGE, ignore_errors=True)
    folders = list_pages()
    top = [page for page in folders.pop("", []) if page.path != INDEX]
    pages = [*top, *(page for folder in folders.values() for page in folder)]
    stage = Stage(list_targets(pages), repository, fetch_mermaid(STAGE / "js"))
    project = [ROOT / name for name in PROJECT if ROOT / name in stage.targets]
    for source in (ROOT / "README.md", *project):
        stage.write_file(source)
    for page in pages:
        stage.write_notebook(page)
    parts = {name: stage.write_folder(name, folder) for name, folder in folders.items()}
    (STAGE / "site.css").write_text(STYLE, encoding="utf-8")
    return [
        {"Home": ["index.md", *stage.entries(top)]},
        *({name.capitalize(): parts.pop(name)} for name in APART if name in parts),
        {"Library": [{name: part} for name, part in parts.items()]},
        {"Project": [{path.stem.capitalize(): stage.targets[path]} for path in project]},
    ]


def main() -> None:
    "Build the site; any warning, such as a link that leads nowhere, ends the build."
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    STAGE.mkdir(parents=True, exist_ok=True)
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True)
    config.nav = write_pages(config.extra["repository"])
    build(config)


if __name__ == "__main__":
    main()
