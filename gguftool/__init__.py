"""gguftool: take GGUF model files apart and put them together again, tensor by tensor.

    import gguftool

    model = gguftool.open_model("model.gguf")
    plan = gguftool.plan_split(model, "shards/model")
    gguftool.execute(plan)

Every operation that writes makes a plan (pure data, no disk); `execute` carries it out.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguftool.analysis.dump import dump as dump
    from gguftool.errors import ExecuteError as ExecuteError
    from gguftool.errors import FormatError as FormatError
    from gguftool.errors import GGUFToolError as GGUFToolError
    from gguftool.errors import PlanError as PlanError
    from gguftool.errors import SourceError as SourceError
    from gguftool.format.ggml import TYPES as TYPES
    from gguftool.format.ggml import nbytes as nbytes
    from gguftool.format.header import Header as Header
    from gguftool.format.header import parse as parse
    from gguftool.format.header import serialize as serialize
    from gguftool.model.model import Model as Model
    from gguftool.model.model import Tensor as Tensor
    from gguftool.model.opening import open_model as open_model
    from gguftool.model.opening import open_models as open_models
    from gguftool.storage.execute.executor import execute as execute
    from gguftool.storage.execute.options import Options as Options
    from gguftool.storage.plan import Plan as Plan
    from gguftool.surgery.merge import plan_merge as plan_merge
    from gguftool.surgery.split import plan_split as plan_split

__version__ = "0.1.0"

# Name -> module. Loaded on first use: the command line starts without paying for what it does not need.
_PUBLIC = {
    "ExecuteError": "gguftool.errors",
    "FormatError": "gguftool.errors",
    "GGUFToolError": "gguftool.errors",
    "Header": "gguftool.format.header",
    "Model": "gguftool.model.model",
    "Options": "gguftool.storage.execute.options",
    "Plan": "gguftool.storage.plan",
    "PlanError": "gguftool.errors",
    "SourceError": "gguftool.errors",
    "TYPES": "gguftool.format.ggml",
    "Tensor": "gguftool.model.model",
    "dump": "gguftool.analysis.dump",
    "execute": "gguftool.storage.execute.executor",
    "nbytes": "gguftool.format.ggml",
    "open_model": "gguftool.model.opening",
    "open_models": "gguftool.model.opening",
    "parse": "gguftool.format.header",
    "plan_merge": "gguftool.surgery.merge",
    "plan_split": "gguftool.surgery.split",
    "serialize": "gguftool.format.header",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'gguftool' has no attribute {name!r}")
