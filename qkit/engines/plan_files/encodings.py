"""A plan as a file of encodings in the form of AIMET's, and back.

AIMET counts codes from 0 up: ``value = (code + offset) * scale`` with codes of 0 to ``2**bits - 1``, so that a grid of
-128..127 with zero point z has offset ``-128 - z``. Versions 0.6.1 and 1.0.0 of the form are written, after AIMET's published
"Encoding Format Specification"; no AIMET was at hand to read them. Scales are float32 numbers in a decimal notation that gives
back the same bits. What the form does not say (whether codes are signed, a grid without its least code in 1.0.0, the width of
biases) is in an entry ``"qkit"`` of its own, without which a file is read by the kit's customs: signed codes, as in its presets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from qkit import files
from qkit.engines.plan_files.checks import FoundTensors, left_out, renamed, rule_of, widths_of
from qkit.engines.plan_files.json_file import Entry, read_json
from qkit.errors import PlanError
from qkit.graph import Graph
from qkit.quant.grids import QuantParams
from qkit.quant.plan import Grid, Plan

if TYPE_CHECKING:
    from qkit.study import Study

__all__ = ["read", "write"]

Version = Literal["0.6.1", "1.0.0"]
#: Least widths that the versions allow.
_LEAST_BITS: Mapping[str, int] = {"0.6.1": 4, "1.0.0": 2}


def write(plan: Plan, path: str | Path, *, version: Version = "1.0.0", names: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Write a plan's grids as encodings, and return what of the plan they do not hold.

    Parameters
    ----------
    version
        Of the form: "1.0.0", lists of entries; "0.6.1", entries by tensor with ``min`` and ``max``.
    names
        The file's names by the plan's, such as those of an ONNX file's tensors; others keep theirs.

    Raises
    ------
    PlanError
        If a grid is narrower than the version allows, or two tensors would have one name.
    """
    if version not in _LEAST_BITS:
        raise PlanError(f"there is no version {version!r} of encodings here; there are {', '.join(_LEAST_BITS)}.")
    taken = renamed(plan, names)
    entries: dict[bool, dict[str, Any]] = {False: {}, True: {}}
    hints: dict[str, Any] = {}
    for tensor, grid in plan.grids.items():
        if grid.params.bits < _LEAST_BITS[version]:
            raise PlanError(f"{tensor} has {grid.params.bits} bits; encodings of version {version} have at least 4.")
        entry = _encoding(grid.params, version)
        entries[grid.weight][taken[tensor]] = entry
        if _as_customary(Entry(entry, tensor), version, grid.params.axis) != grid.params:
            hints[taken[tensor]] = {"qmin": grid.params.qmin, "qmax": grid.params.qmax, "axis": grid.params.axis}
    document: dict[str, Any] = {"version": version}
    for key, weight in (("activation_encodings", False), ("param_encodings", True)):
        found = entries[weight]
        listed = [{"name": name, **entry} for name, entry in found.items()]
        document[key] = {name: entry["channels"] for name, entry in found.items()} if version == "0.6.1" else listed
    document["excluded_layers"] = []
    document["qkit"] = {"name": plan.name, **widths_of(plan), "grids": hints}
    files.write_json(path, document, error=PlanError)
    return tuple(left_out(plan))


def read(path: str | Path, study: Study | Graph, *, names: Mapping[str, str] | None = None) -> Plan:
    """The plan that a file of encodings amounts to for this network.

    Entries of biases give the biases' width; tensors with ``dtype`` float and tensors without entry stay float.

    Parameters
    ----------
    study
        The network's study, or its graph: which tensors there are, and where their channels lie.
    names
        The file's names by the kit's, as for `write`.

    Raises
    ------
    PlanError
        If the file is missing, corrupt, of another version, or not of this network.
    """
    graph = study if isinstance(study, Graph) else study.graph
    document = read_json(path, "encodings")
    version = document.get("version", str)
    if version not in _LEAST_BITS:
        raise document.error(f"its version is {version!r}; {' and '.join(_LEAST_BITS)} can be read")
    own = document.entry("qkit")
    hints = dict(own.entry("grids").items())
    found = FoundTensors(graph, names)
    for key in ("activation_encodings", "param_encodings"):
        for name, entry in _entries(document, key, version):
            if found.is_bias(name):
                found.bias_width(entry.whole("bitwidth" if version == "0.6.1" else "bw")[0], entry)
                continue
            tensor = found.tensor(name, entry)
            weight = tensor in graph.weights
            params = _decoded(entry, version, graph.operation(tensor).weight_axis if weight else None, hints.get(name))
            if params is not None:
                found.add(tensor, Grid(rule_of(params, weight), params, "encodings", weight), entry)
    return found.plan(own, Path(path).stem)


def _encoding(params: QuantParams, version: Version) -> dict[str, Any]:
    """A grid as an entry without its name; of 0.6.1 a list of them, one for each channel."""
    base = -(2 ** (params.bits - 1)) if params.qmin < 0 else 0
    symmetric = params.qmin < 0 and not bool(params.zero_point.any())
    scales, zeros = params.scale.reshape(-1).tolist(), params.zero_point.reshape(-1).tolist()
    if version == "1.0.0":
        kind = "PER_TENSOR" if params.axis is None else "PER_CHANNEL"
        offsets = [base - zero for zero in zeros]
        return {"dtype": "INT", "enc_type": kind, "bw": params.bits, "is_sym": symmetric, "scale": scales, "offset": offsets}
    channels = [
        {
            "bitwidth": params.bits, "dtype": "int", "is_symmetric": str(symmetric), "max": (params.qmax - zero) * scale,
            "min": (params.qmin - zero) * scale, "offset": params.qmin - zero, "scale": scale,
        }
        for scale, zero in zip(scales, zeros, strict=True)
    ]  # fmt: skip
    return {"channels": channels}


def _entries(document: Entry, key: str, version: str) -> Iterator[tuple[str, Entry]]:
    """The file's entries by name."""
    listed = document.get(key, dict if version == "0.6.1" else list)
    where = f"{document.name}, {key}"
    if isinstance(listed, dict):
        for name, value in listed.items():
            if not isinstance(value, list) or not value or not all(isinstance(channel, dict) for channel in value):
                raise PlanError(f"{where}, {name}: it is no list of encodings.")
            yield name, Entry({**value[0], "channels": value}, f"{where}, {name}")
        return
    for i, value in enumerate(listed):
        if not isinstance(value, dict):
            raise PlanError(f"{where}: its entry {i} is no encoding.")
        name = Entry(value, f"{where}, entry {i}").get("name", str)
        yield name, Entry(value, f"{where}, {name}")


def _as_customary(entry: Entry, version: str, axis: int | None) -> QuantParams | None:
    """What a reader makes of an entry without further word on it; None where it can make nothing of it."""
    try:
        return _decoded(entry, version, axis)
    except PlanError:
        return None


def _decoded(entry: Entry, version: str, axis: int | None, hint: Entry | None = None) -> QuantParams | None:
    """The grid of an entry, None for float; `axis` is that of the tensor's channels, `hint` the file's own word on the codes."""
    if version == "1.0.0":
        if entry.get("dtype", str).upper() != "INT":
            return None
        kind = entry.get("enc_type", str)
        if kind not in {"PER_TENSOR", "PER_CHANNEL"}:
            raise entry.error(f"its enc_type {kind!r} is none of PER_TENSOR and PER_CHANNEL, which are the kit's")
        bits, symmetric = _bits(entry, "bw"), entry.get("is_sym", bool)
        scales, offsets, steps = entry.numbers("scale"), entry.whole("offset"), 2**bits - 1
        per_channel = kind == "PER_CHANNEL"
    else:
        channels = [Entry(channel, entry.name) for channel in entry.data["channels"]]
        if channels[0].get("dtype", str).lower() != "int":
            return None
        bits, symmetric = _bits(channels[0], "bitwidth"), channels[0].get("is_symmetric", (str, bool)) in {"True", True}
        scales = [channel.numbers("scale")[0] for channel in channels]
        offsets = [channel.whole("offset")[0] for channel in channels]
        steps = _steps(channels, bits) if hint is None else 0
        per_channel = len(channels) > 1
    if hint is not None:
        qmin, qmax = hint.whole("qmin")[0], hint.whole("qmax")[0]
        # 0.6.1 counts from the least code that there is, 1.0.0 from the least that the width allows
        base = qmin if version == "0.6.1" else -(2 ** (bits - 1)) if qmin < 0 else 0
        axis = hint.get("axis", (int, type(None)))
        per_channel = axis is not None
    else:
        qmin, qmax = _codes(entry, bits, symmetric, offsets, steps)
        base = qmin
    if len(scales) != len(offsets) or (not per_channel and len(scales) != 1):
        raise entry.error(f"it has {len(scales)} scales and {len(offsets)} offsets")
    if per_channel and axis is None:
        raise entry.error("it is per channel, which the kit has for weights alone")
    shape = () if not per_channel else (len(scales),)
    zeros = [base - offset for offset in offsets]
    if any(abs(zero) >= 2**31 for zero in zeros) or any(abs(scale) > 3e38 for scale in scales):
        raise entry.error("its numbers are too large")
    try:
        return QuantParams(
            torch.tensor(scales, dtype=torch.float32).reshape(shape), torch.tensor(zeros, dtype=torch.int32).reshape(shape),
            qmin, qmax, axis if per_channel else None,
        )  # fmt: skip
    except PlanError as error:
        raise entry.error(str(error).rstrip(".")) from error


def _bits(entry: Entry, key: str) -> int:
    bits = entry.whole(key)[0]
    if not 2 <= bits <= 16:
        raise entry.error(f"it has {bits} bits, the kit's grids have 2 to 16")
    return bits


def _steps(channels: list[Entry], bits: int) -> int:
    """Number of steps between least and greatest value, from the values."""
    found = set()
    for channel in channels:
        (scale,), (low,), (high,), (offset,) = (channel.numbers(key) for key in ("scale", "min", "max", "offset"))
        steps = round((high - low) / scale) if scale > 0 and math.isfinite((high - low) / scale) else -1
        if steps not in {2**bits - 1, 2**bits - 2} or abs(low - offset * scale) > 0.01 * scale + 1e-5 * abs(low):
            raise channel.error(f"its min {low:g}, max {high:g}, scale {scale:g} and offset {offset:g} contradict each other")
        found.add(steps)
    if len(found) > 1:
        raise channels[0].error("its channels have different numbers of codes")
    return int(found.pop())


def _codes(entry: Entry, bits: int, symmetric: bool, offsets: list[int], steps: int) -> tuple[int, int]:
    """Least and greatest code by the kit's customs, for grids of so many steps."""
    half = 2 ** (bits - 1)
    if symmetric:
        if any(offset not in {-half, -half + 1, 0} for offset in offsets) or len(set(offsets)) > 1:
            raise entry.error(f"it is symmetric, with an offset of {offsets[0]} that is not")
        low = offsets[0]
        return (0, steps) if low == 0 else (-half + 1, half - 1) if low == -half + 1 else (-half, -half + steps)
    narrow = steps == 2**bits - 2
    return (-half + narrow, half - 1)
