"""JupyterLab as `make lab` starts it: it opens on the first page, and saving leaves git clean.

The Makefile adds this folder to JUPYTER_CONFIG_PATH, so settings of your own stay in force.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / ".ci"))

from clean import clean, config  # noqa: E402

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # as the tests have it


def clean_on_save(model, path, **_):
    "Clean a notebook below nbs/; save any other as it is."
    ours = path.lstrip("/").startswith(f"{config.nbs_path.name}/")
    if ours and model["type"] == "notebook" and model["content"]["nbformat"] == 4:
        clean(model["content"], "trusted")  # which Jupyter itself takes out again


c.ServerApp.root_dir = str(ROOT)  # noqa: F821
c.FileContentsManager.pre_save_hook = clean_on_save  # noqa: F821
