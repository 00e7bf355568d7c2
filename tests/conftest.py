"Fixtures that several test files share."

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# What the Makefile keeps aside, for comparison.
sys.path.append(str(Path(__file__).parents[1] / ".venv/torch/site-packages"))
sys.path.append(str(Path(__file__).parents[1] / ".venv/real/site-packages"))

from databases import database_url, own_postgres, store  # noqa: F401
from serving import api, root  # noqa: F401


@pytest.fixture
def count_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable], list[tuple]]:
    "Count the calls of a function, by whichever name a module of the package holds it."

    def watch(function: Callable) -> list[tuple]:
        calls: list[tuple] = []

        def counted(*given, **named):
            calls.append(given)
            return function(*given, **named)

        ours = [module for name, module in sys.modules.items() if name.startswith("tunix_rt.")]
        for module in ours:
            if vars(module).get(function.__name__) is function:
                monkeypatch.setattr(module, function.__name__, counted)
        return calls

    return watch


@pytest.fixture
def own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    "Kernels that are processes like any other, not forked off one with the imports done."
    monkeypatch.delenv("TUNIX_RT_TEST_KERNELS", raising=False)
