"A notebook saved in JupyterLab is what git has, unless its results changed."

import importlib.util
import json
from pathlib import Path

import nbformat
import pytest
from jupyter_server.services.contents.filemanager import FileContentsManager
from traitlets.config.loader import PyFileConfigLoader

CHECKOUT = Path(__file__).parents[1]
TAGGED = "nbs/pipelines/20_evaluate.ipynb"


@pytest.fixture(scope="module")
def clean():
    "The module that the gate cleans with."
    spec = importlib.util.spec_from_file_location("clean", CHECKOUT / ".ci" / "clean.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def manager(tmp_path: Path) -> FileContentsManager:
    "What saves for JupyterLab, configured as `make lab` does."
    loader = PyFileConfigLoader("jupyter_server_config.py", path=str(CHECKOUT / ".jupyter"))
    config = loader.load_config()
    assert config.ServerApp.root_dir == str(CHECKOUT)
    config.NotebookNotary.data_dir = str(tmp_path)  # signatures of its own
    return FileContentsManager(config=config, root_dir=str(tmp_path))


def used(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "Do to a notebook what opening and running it in JupyterLab does."
    notebook.metadata.kernelspec.display_name = "Python 3 (ipykernel)"
    notebook.metadata.language_info = {"name": "python", "version": "3.11.7"}
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code":
            cell.metadata.trusted = True
            cell.execution_count = number
            cell.metadata.scrolled = True
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = number
    return notebook


def test_running_and_saving_changes_nothing(manager, clean, tmp_path):
    path = tmp_path / TAGGED
    path.parent.mkdir(parents=True)
    path.write_bytes((CHECKOUT / TAGGED).read_bytes())
    clean.main(str(path))
    before = path.read_bytes()

    notebook = used(nbformat.read(path, as_version=4))
    tags = [cell.metadata.get("tags") for cell in notebook.cells]
    manager.save({"type": "notebook", "format": "json", "content": notebook}, TAGGED)
    assert path.read_bytes() == before
    assert [c["metadata"].get("tags") for c in json.loads(before)["cells"]] == tags != []
    assert manager.notary.check_signature(nbformat.read(path, as_version=4))  # pictures stay


def test_a_run_folder_is_left_alone(manager, tmp_path):
    (tmp_path / "outputs").mkdir()
    notebook = used(nbformat.read(CHECKOUT / TAGGED, as_version=4))
    manager.save({"type": "notebook", "format": "json", "content": notebook}, "outputs/x.ipynb")
    saved = nbformat.read(tmp_path / "outputs" / "x.ipynb", as_version=4)
    assert saved.metadata.language_info.version == "3.11.7"
    assert any(cell.metadata.get("scrolled") for cell in saved.cells)


def test_what_was_printed_in_pieces_is_one_output(clean):
    printed = [("stdout", "a\n"), ("stdout", "\r 0%\r"), ("stdout", "100%"), ("stdout", "\nb\n")]
    printed += [("stderr", "w\n"), ("stdout", "c\n")]
    outputs = [{"output_type": "stream", "name": name, "text": text} for name, text in printed]
    merged = [(output["name"], output["text"]) for output in clean.merge_streams(outputs)]
    assert merged == [("stdout", "a\n100%\nb\n"), ("stderr", "w\n"), ("stdout", "c\n")]
