"""Faults of transformers: softmax outputs, logits, norms with outlier channels, the negative part of GELU and SiLU.

Which module is what follows from the three bundled networks' own names, so that no analysis is shared with the kit.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from benchmarks.faults.plants.plant import Bench, Plant, anywhere, names_of, override, step_of
from benchmarks.faults.plants.ranges import _NARROW, _WIDE, _rescale
from benchmarks.faults.setup import Setup
from benchmarks.faults.truth import NOT_QUANTIZATION, QUANTIZATION, Mark, NoSite
from qkit.quant.grids import QuantSpec
from qkit.quant.plan import Plan
from qkit.study import Study

#: A norm by the end of its path -> the linear layer that reads it.
READERS = {"norm1": "attn.qkv", "norm2": "mlp.fc1", "stages.1.norm": "reduction"}
#: Channels of a norm that are made wide.
WIDE = 3


def _softmaxes(setup: Setup, bench: Bench) -> list[str]:
    return [tap for tap in bench.graph.taps if tap.rpartition(":")[2].startswith("softmax")]


def _logits(setup: Setup, bench: Bench) -> list[str]:
    """What the softmaxes read: the product of queries and keys, or the last thing that was added to it."""
    return [str(bench.graph.operations[step_of(bench, tap).inputs[0]].tap) for tap in _softmaxes(setup, bench)]


def _pointwise(setup: Setup, bench: Bench) -> list[str]:
    modules = dict(setup.model.named_modules())
    return [tap for tap in bench.graph.taps if isinstance(modules.get(tap), (nn.GELU, nn.SiLU))]


def _norms(setup: Setup, bench: Bench) -> list[str]:
    return [path for path, _ in setup.model.named_modules() if _reader(path) is not None]


def _reader(path: str) -> str | None:
    end = next((end for end in READERS if path == end or path.endswith(f".{end}")), None)
    return None if end is None else f"{path.removesuffix(end.rpartition('.')[2])}{READERS[end]}"


def _outlier_channels(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """A few channels of the norm × factor, the columns of the layer that reads them ÷ factor: float stays the same."""
    norm, reader = setup.model.get_submodule(site), setup.model.get_submodule(_reader(site) or "")
    weight: Tensor = norm.weight.data  # type: ignore[union-attr,assignment]
    chosen = bench.random.sample(range(len(weight)), WIDE)
    weight[chosen] *= factor
    norm.bias.data[chosen] *= factor  # type: ignore[union-attr,operator,index]
    reader.weight.data[:, chosen] /= factor  # type: ignore[union-attr,operator,index]
    return Mark(frozenset((site,)))


def _unsigned(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """The first so many GELUs or SiLUs have a grid without negative codes, at any width."""
    return _one_sided(setup, bench, int(factor), by_scheme=True)


def _cut_at_zero(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """The ranges of the first so many GELUs or SiLUs begin at 0, in the plan as if somebody had typed it."""
    return _one_sided(setup, bench, int(factor), by_scheme=False)


def _one_sided(setup: Setup, bench: Bench, count: int, *, by_scheme: bool) -> Mark:
    taps = _pointwise(setup, bench)
    if count > len(taps):
        raise NoSite(f"there are {len(taps)} pointwise functions")
    marks: frozenset[str] = frozenset()
    for tap in taps[:count]:
        if by_scheme:
            setup.scheme = override(setup.scheme, tap, QuantSpec(symmetric=True, signed=False))
        else:
            setup.edits.append(partial(_from_zero, tap=tap))
        marks |= names_of(step_of(bench, tap))
    # what 16 bits lose as well is not rounding
    return Mark(marks, verdicts=(NOT_QUANTIZATION,) if by_scheme else (QUANTIZATION,))


def _from_zero(study: Study, plan: Plan, tap: str) -> Plan:
    return plan.with_range(tap, 0.0, plan[tap].params.hi)


_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)

PLANTS = (
    Plant("range-too-wide", "softmax", _softmaxes, _rescale, _WIDE, needs="attention"),
    Plant("activation-channel-imbalance", "norm", _norms, _outlier_channels,
          (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0), needs="attention"),
    Plant("range-too-narrow", "logits", _logits, _rescale, _NARROW, needs="attention"),
    Plant("range-too-narrow", "unsigned", anywhere, _unsigned, _COUNTS, needs="attention", lanes=("int16",)),
    Plant("range-too-narrow", "from-zero", anywhere, _cut_at_zero, _COUNTS, needs="attention", lanes=("int8",)),
)  # fmt: skip


def mild_channels(setup: Setup, bench: Bench) -> None:
    """In every norm some channels three times as wide, compensated."""
    for path in _norms(setup, bench):
        _outlier_channels(setup, bench, path, 3.0)


CONTROLS = {"mild-channels": mild_channels}
