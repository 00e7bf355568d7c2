"""Reasoning traces in, a model that shows its work out: `import tunix_rt as rt`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Name -> module that has it. Nothing is imported before it is used (PEP 562).
_HOMES = {
    "make_dataset": "api",
    "load_dataset": "data.datasets",
    "create_model": "api",
    "load_model": "api",
    "sft": "api",
    "grpo": "post_training",
    "preference": "preferences",
    "generate": "api",
    "evaluate": "api",
    "compare": "api",
    "show": "api",
    "Model": "api",
    "SFTResult": "api",
    "GRPOResult": "post_training",
    "PreferenceResult": "preferences",
    "Dataset": "data.datasets",
    "Trace": "traces.schema",
    "Step": "traces.schema",
    "Evaluation": "evaluation.evaluate",
    "Comparison": "evaluation.compare",
    "Completion": "inference.engine",
    "LoraConfig": "models.lora",
    "TunixError": "core.errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    # What a completion offers: the functions and types above, and the packages in use.
    packages = {name for name, value in globals().items() if isinstance(value, ModuleType)}
    return sorted({*__all__, *packages})


if TYPE_CHECKING:
    from .api import Model as Model
    from .api import SFTResult as SFTResult
    from .api import compare as compare
    from .api import create_model as create_model
    from .api import evaluate as evaluate
    from .api import generate as generate
    from .api import load_model as load_model
    from .api import make_dataset as make_dataset
    from .api import sft as sft
    from .api import show as show
    from .core.errors import TunixError as TunixError
    from .data.datasets import Dataset as Dataset
    from .data.datasets import load_dataset as load_dataset
    from .evaluation.compare import Comparison as Comparison
    from .evaluation.evaluate import Evaluation as Evaluation
    from .inference.engine import Completion as Completion
    from .models.lora import LoraConfig as LoraConfig
    from .post_training import GRPOResult as GRPOResult
    from .post_training import grpo as grpo
    from .preferences import PreferenceResult as PreferenceResult
    from .preferences import preference as preference
    from .traces.schema import Step as Step
    from .traces.schema import Trace as Trace
