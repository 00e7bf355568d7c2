"Fixtures that several test files share."

import sys
from pathlib import Path

import pytest

# What the Makefile keeps aside, for comparison.
sys.path.append(str(Path(__file__).parents[1] / ".venv/torch/site-packages"))

from databases import database_url, own_postgres, store  # noqa: F401
from serving import api, root  # noqa: F401


@pytest.fixture
def own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    "Kernels that are processes like any other, not forked off one with the imports done."
    monkeypatch.delenv("TUNIX_RT_TEST_KERNELS", raising=False)
