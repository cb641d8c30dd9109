"""What arrives at the door: any object a user gives as a model becomes the module to analyse, or an error with its cure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from qkit.graph.door.refusals import is_file, refuse, refuse_what_is_no_model
from qkit.graph.door.wrappers import remarks_inside, unwrap

__all__ = ["Arrival", "arrive", "is_file"]


@dataclass(frozen=True, eq=False)
class Arrival:
    """What there is to analyse, and what has to be said of how it came.

    Attributes
    ----------
    model
        The user's own module, without the wrappers around it (those inside it are still there, and `copy_of` leaves them out);
        or, untouched, an `ExportedProgram` or the path of an ``.onnx`` or ``.pt2`` file.
    remarks
        A sentence or two on each wrapper, around the model and inside it.
    """

    model: Any
    remarks: tuple[str, ...] = ()


def arrive(model: object) -> Arrival:
    """What `model` is, without wrappers; changes nothing. Tensors are looked at by `qkit.graph.door.refusals.check_tensors`.

    Raises
    ------
    GraphError
        If it is no model (a class, a state dict, another file, …), or one that cannot be analysed: TorchScript, lazy modules that
        never ran, models prepared for or converted by quantization, models spread over processes, exports in training mode.
    """
    refuse_what_is_no_model(model)
    if isinstance(model, ExportedProgram):
        refuse(model)
        return Arrival(model)
    if not isinstance(model, nn.Module):
        return Arrival(model)
    inner, remarks = unwrap(model)
    refuse(inner)
    return Arrival(inner, (*remarks, *remarks_inside(inner)))
