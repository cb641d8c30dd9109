"""torchvision, also where its compiled operators cannot be loaded."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType

import torch

from qkit.errors import MissingExtra, QkitError

logger = logging.getLogger(__name__)

#: What torchvision refers to by name while it is imported. Schemas only: nothing implements them.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# A torch.library.Library takes its schemas away when it is collected, so it lives as long as the process.
_declared: list[torch.library.Library] = []


def load_torchvision() -> ModuleType:
    """Import torchvision and return it.

    A torchvision built for CUDA beside a CPU build of torch cannot load its compiled operators, and then even
    ``import torchvision`` fails, although classification models, data sets and transforms need none of them.
    In that case, and only then, the two operators which the import refers to are declared without an
    implementation. A real ``torchvision.ops.nms`` stays unavailable; that is logged once.

    Returns
    -------
    ModuleType
        The module ``torchvision``.

    Raises
    ------
    QkitError
        If torchvision is not installed, or cannot be imported for another reason.
    """
    if "torchvision" in sys.modules:
        return sys.modules["torchvision"]
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise MissingExtra(
            "torchvision is needed for these models and is not installed: install the one that goes with "
            f"torch {torch.__version__}, for example with `pip install torchvision`."
        )
    reason = _why_operators_are_missing(Path(spec.origin).parent)
    if reason is not None and not _declared:
        _declare_schemas(reason)
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        _forget_half_imported()
        raise QkitError(
            f"torchvision cannot be imported beside torch {torch.__version__} ({error}): "
            "install the version of torchvision that goes with this torch."
        ) from error


def _why_operators_are_missing(package: Path) -> str | None:
    """Load the compiled operators as torchvision itself would; ``None`` on success, else the reason."""
    libraries = sorted((*package.glob("_C*.so"), *package.glob("_C*.pyd")))
    reason = "this build of torchvision has none"
    for library in libraries:
        try:
            torch.ops.load_library(str(library))
        except (OSError, ImportError) as error:
            reason = str(error.__cause__ or error)
    return None if _operator_exists("nms") else reason


def _operator_exists(name: str) -> bool:
    return hasattr(torch.ops.torchvision, name)


def _declare_schemas(reason: str) -> None:
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    _declared.append(library)
    logger.info(
        "torchvision's compiled operators cannot be loaded (%s): classification models, data sets and "
        "transforms work, a real torchvision.ops.nms is unavailable.",
        reason,
    )


def _forget_half_imported() -> None:
    # a second attempt must not find the submodules of a failed one and take them for a whole package
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
