"""Models that cannot be analysed as they are, each with its cure."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from qkit.errors import DataError, GraphError
from qkit.graph.door.wrappers import class_names

#: Files that a study opens itself.
MODEL_FILES = (".onnx", ".pt2")

_FLOAT_MODEL = (
    "Give the float model that it was made from; a file that is quantized already can be given as ONNX with its "
    "QuantizeLinear and DequantizeLinear nodes."
)
_GATHER = (
    "Gather its weights, for example by get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) of "
    "torch.distributed.checkpoint.state_dict, and load them into the model as it was before it was spread."
)
#: Beginnings of full class names; what is float all the same.
_QUANTIZED_CLASSES = (
    "torch.ao.nn.quantized.", "torch.ao.nn.qat.", "torch.ao.nn.intrinsic.qat.", "torch.ao.nn.intrinsic.quantized.",
    "torch.ao.nn.sparse.quantized.", "torchao.", "bitsandbytes.", "optimum.quanto.", "quanto.",
)  # fmt: skip
_FLOAT_CLASSES = (
    "torch.ao.nn.quantized.modules.functional_modules.FloatFunctional",
    "torch.ao.nn.quantized.modules.functional_modules.FXFloatFunctional",
)
_OBSERVERS = (".ObserverBase", ".FakeQuantizeBase")  # of torch.ao and of torchao
_QUANTIZED_TENSORS = ("torchao.", "bitsandbytes.", "optimum.quanto.", "quanto.")
#: Parts of what a graph calls.
_QUANTIZED_CALLS = ("quantized_decomposed.", "torchao.", "quantized.", "quantize_per_", "fake_quantize_", "dequantize")
_WEIGHTED = (
    nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
#: Calls of an exported graph that behave differently in training, and the position of the argument that tells.
_MODES = {
    "aten.batch_norm.default": 5,
    "aten.dropout.default": 2,
    "aten.feature_dropout.default": 2,
    "aten.alpha_dropout.default": 2,
}


def is_file(model: object) -> bool:
    """Whether the model is given as the path of a file that a study opens: ``.onnx`` or ``.pt2``."""
    return isinstance(model, (str, os.PathLike)) and PurePath(os.fspath(model)).suffix.lower() in MODEL_FILES


def refuse_what_is_no_model(model: object) -> None:
    """Raise `GraphError` if `model` is neither a module, nor an exported program, nor a file that a study opens."""
    if isinstance(model, (nn.Module, ExportedProgram)) or is_file(model):
        return
    raise GraphError(f"a torch.nn.Module is needed, not {type(model).__name__}{_cure(model)}")


def _cure(model: object) -> str:
    if isinstance(model, type):
        inside = issubclass(model, nn.Module)
        return f": {model.__name__} is a class; call it, {model.__name__}(…), and load its weights." if inside else "."
    if isinstance(model, (str, os.PathLike)):
        return (
            f": {os.fspath(model)!r} is a path or a name. Only .onnx and .pt2 files hold a network; for a checkpoint build the "
            "model and load it, model.load_state_dict(torch.load(path, weights_only=True))."
        )
    if isinstance(model, Mapping):
        return _cure_of_mapping(model)
    if isinstance(model, (tuple, list)) and model and all(isinstance(part, nn.Module) for part in model):
        return ": wrap the layers, nn.Sequential(*layers), or give the one of them that is the model."
    if isinstance(model, torch.jit.ScriptFunction):
        return ": it is scripted, and scripted code cannot be traced; put the function it was made from in a module."
    if type(model).__module__.partition(".")[0] in {"onnx", "onnxruntime", "onnx_ir"}:
        return ": give the path of the .onnx file."
    if callable(model) and not isinstance(model, Tensor):
        return "; if it is a function that makes one, call it; if it computes the outputs, put it in a module's forward."
    return ": build the network as a module, and give that."


def _cure_of_mapping(model: Mapping[Any, Any]) -> str:
    modules = [key for key, value in model.items() if isinstance(value, nn.Module)]
    if modules:
        return f": it is a checkpoint that holds modules; give one of them, as checkpoint[{modules[0]!r}].float()."
    inner = next((k for k, v in model.items() if isinstance(v, Mapping) and any(isinstance(t, Tensor) for t in v.values())), None)
    if inner is not None:
        return (
            f": it is a checkpoint with a state dict in {inner!r}. Build the model and load it, "
            f"model.load_state_dict(checkpoint[{inner!r}])."
        )
    if any(isinstance(value, Tensor) for value in model.values()):
        return f": it is a state dict of {len(model)} entries. Build the model and load it, model.load_state_dict(state)."
    return ": build the model, and give that."


def refuse(model: nn.Module | ExportedProgram) -> None:
    """Raise `GraphError` for what no trace can follow or what is not in float any more, with the place and the cure.

    Refused are TorchScript, lazy modules that never ran, models spread over processes, models that were prepared for or
    converted by quantization (eager, FX, PT2E, torchao, bitsandbytes and their like), and graphs exported in training mode.
    """
    modules = {"": model.graph_module} if isinstance(model, ExportedProgram) else dict(model.named_modules())
    root = type(model).__name__
    for name, tensor in _tensors(model):
        _refuse_tensor(f"{root}.{name}", tensor)
    for path, module in modules.items():
        where = f"{root}.{path}" if path else root
        _refuse_observed(where, module)
        _refuse_class(where, module)
        if isinstance(module, fx.GraphModule):
            _refuse_calls(where, module)
        _refuse_packed(where, module)


def _refuse_class(where: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise GraphError(
            f"{where} is scripted (TorchScript), and scripted code cannot be traced: give the module it was made from."
        )
    names = class_names(module)
    if any(name.startswith("torch.distributed.fsdp.") for name in names):
        raise GraphError(f"{where} is spread over processes by FSDP, and its parameters are not whole here. {_GATHER}")
    if any(name.startswith(_QUANTIZED_CLASSES) and name not in _FLOAT_CLASSES for name in names):
        raise GraphError(f"{where} is quantized already or prepared for it ({names[0]}). {_FLOAT_MODEL}")


def _refuse_observed(where: str, module: nn.Module) -> None:
    if any(name.startswith(("torch.ao.", "torchao.")) and name.endswith(_OBSERVERS) for name in class_names(module)):
        raise GraphError(
            f"{where} is an observer or a fake quantizer ({type(module).__name__}): the model is prepared for quantization. "
            f"{_FLOAT_MODEL}"
        )


def _refuse_calls(where: str, module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if node.op not in {"call_function", "call_method"}:
            continue
        text = str(node.target)  # of an operator its full name; of a Python function an address
        called = str(getattr(node.target, "__name__", text)) if text.startswith("<") else text
        if called.startswith(_QUANTIZED_CALLS) or any(part.startswith(_QUANTIZED_CALLS) for part in called.split(".")[1:]):
            raise GraphError(f"{where} is a graph that quantizes at {node.name} ({called}). {_FLOAT_MODEL}")
        position = _MODES.get(called)
        if position is not None and len(node.args) > position and node.args[position] is True:
            raise GraphError(
                f"{where} was exported in training mode ({called} at {node.name} trains): call model.eval() and then "
                "torch.export.export."
            )


def _refuse_packed(where: str, module: nn.Module) -> None:
    own = dict([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])
    if {"qweight", "scales"} <= own.keys():
        raise GraphError(f"{where} holds packed integer weights (qweight, scales). {_FLOAT_MODEL}")
    weight = own.get("weight")
    if isinstance(module, _WEIGHTED) and weight is not None and not weight.is_floating_point() and not weight.is_complex():
        raise GraphError(f"{where}.weight holds integers ({weight.dtype}). {_FLOAT_MODEL}")


def _refuse_tensor(name: str, tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise GraphError(f"{name} has no shape yet, since its lazy module never ran: run one batch through the model first.")
    names = class_names(tensor)
    if any(kind.startswith("torch.distributed.tensor.") for kind in names):
        raise GraphError(f"{name} is a DTensor, spread over processes. {_GATHER}")
    quantized = any(kind.startswith(_QUANTIZED_TENSORS) for kind in names)
    if quantized or tensor.is_quantized or (tensor.is_floating_point() and tensor.element_size() == 1):
        raise GraphError(f"{name} is a quantized tensor ({type(tensor).__name__}, {tensor.dtype}). {_FLOAT_MODEL}")


def _tensors(model: nn.Module | ExportedProgram) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
    if isinstance(model, ExportedProgram):
        yield from ((name, value) for name, value in model.constants.items() if isinstance(value, Tensor))


def check_tensors(model: nn.Module | ExportedProgram, device: torch.device | str | None = None) -> torch.device:
    """The device to run on: the one asked for, or the one that all parameters and buffers are on; the CPU if there are none.

    Raises
    ------
    DataError
        If the model lies on several devices and none is asked for, holds no numbers (the meta device), has floating tensors
        that are not float32, or the device asked for cannot be used.
    """
    tensors = list(_tensors(model))
    devices = sorted({str(tensor.device) for _, tensor in tensors})
    if len(devices) > 1 and device is None:
        raise DataError(
            f"{type(model).__name__} lies on several devices ({', '.join(devices)}): move it to one, or pass device=."
        )
    empty = [name for name, tensor in tensors if tensor.device.type == "meta"]
    if empty:
        more = f" ({len(empty) - 1} more are there)" if len(empty) > 1 else ""
        raise DataError(f"{empty[0]} is on the meta device and holds no numbers: load the checkpoint into the model first{more}.")
    other = [(name, tensor.dtype) for name, tensor in tensors if tensor.is_floating_point() and tensor.dtype != torch.float32]
    if other:
        more = f" (so are {len(other) - 1} more that are not float32)" if len(other) > 1 else ""
        raise DataError(f"{other[0][0]} is {other[0][1]}{more}; qkit analyses float32 models. Convert with model.float() first.")
    return _usable(device if device is not None else devices[0] if devices else "cpu")


def _usable(device: torch.device | str) -> torch.device:
    try:
        target = torch.device(device)
        torch.zeros(1).to(target)
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"device={str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    if target.type == "meta":
        raise DataError("device='meta' holds no numbers: name a device that computes, such as 'cpu' or 'cuda'.")
    return target
