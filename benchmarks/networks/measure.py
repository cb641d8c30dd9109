"""What the front door makes of one network: a row of plain numbers and strings."""

from __future__ import annotations

import copy
import platform
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.networks.byhand import fold
from benchmarks.networks.catalogue import Network
from benchmarks.networks.weights import noise, norms_of, settle

if TYPE_CHECKING:
    from qkit.graph import Graph

#: Timings are the least of so many, after one to warm up, and stop after so many seconds a figure.
REPEATS, PATIENCE = 3, 6.0
#: Images that ranges are observed on, and that the engine is compared on.
IMAGES = 4
#: The scheme of the codes that are held against the fold by hand.
PER_TENSOR = "int8-per-tensor"


@dataclass
class Row:
    """One network's figures; None where a figure was not asked for or not reached.

    Attributes
    ----------
    name, kind, shape
        See `Network`.
    made
        Whether there is a graph; `refused` has the kit's sentence where not, or the exception where it is none of the kit's.
    front, deviation, macs_share, elements_share, taps
        Of the graph: which front it came in by, the distance of its float output to the model's (to ONNX Runtime's of the same
        file, where it is one), and the shares in integers.
    own_error
        The float32 error of the network itself: the distance of its output to its output in float64. A deviation of that size is
        nothing that the graph does. None where the network does not run in float64. Of a file: what ONNX Runtime's own
        optimizations change.
    macs
        Multiply-accumulates of an image.
    norms, standing
        Norms of the network with fixed statistics (None for files), and those that the graph has as steps of their own.
    floats
        What stays float: the operation to how often.
    build_s, export_s, float_s
        Seconds of `qkit.graph.build`, of `torch.export.export` alone, and of one float pass, in one process.
    folded_by_hand, compared, apart, far, largest, unmatched, bias_deviation
        The fold by hand: norms, weight codes compared, those that differ by one step and by more, the greatest difference, names
        of quantized weights that only one of the two graphs has, and the greatest difference of a bias, relative to the greatest
        of its layer. The codes are those of one scale per tensor: with a scale per channel a fold changes none, since it only
        scales channels.
    engine_codes, engine_within, engine_worst, engine_worst_tap
        The QDQ export in ONNX Runtime, from equal inputs and with products that do not saturate: codes, the share within one step
        over all taps, and the worst tap's.
    troubles
        By stage, an exception that ended it.
    notes
        What the graph says of what stays float, shortened.
    seconds
        Of the whole measurement.
    versions
        Of what it was measured with.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    made: bool = False
    refused: str | None = None
    front: str | None = None
    deviation: float | None = None
    own_error: float | None = None
    macs_share: float | None = None
    elements_share: float | None = None
    taps: int | None = None
    macs: int | None = None
    norms: int | None = None
    standing: int | None = None
    floats: dict[str, int] = field(default_factory=dict)
    build_s: float | None = None
    export_s: float | None = None
    float_s: float | None = None
    folded_by_hand: int | None = None
    compared: int | None = None
    apart: int | None = None
    far: int | None = None
    largest: int | None = None
    unmatched: list[str] = field(default_factory=list)
    bias_deviation: float | None = None
    engine_codes: int | None = None
    engine_within: float | None = None
    engine_worst: float | None = None
    engine_worst_tap: str | None = None
    troubles: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def cost(self) -> float | None:
        """Seconds of building over what is allowed: 1.5 times torch.export, and two float passes."""
        if self.build_s is None or self.export_s is None or self.float_s is None:
            return None
        return self.build_s / (1.5 * self.export_s + 2 * self.float_s)

    def to_dict(self) -> dict[str, Any]:
        """Plain, as JSON has it; `cost` included."""
        return {**asdict(self), "shape": list(self.shape), "cost": self.cost}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Row:
        """Inverse of `to_dict`."""
        values = {key: value for key, value in data.items() if key != "cost"}
        return cls(**{**values, "shape": tuple(data["shape"])})


def measure(network: Network, *, engine: bool = True, timed: bool = True) -> Row:
    """Build the network, take it through the front door, and measure what came of it.

    Nothing that a network does ends the measurement: a refusal, or an exception of any stage, is a figure too.

    Parameters
    ----------
    network
        Of the catalogue.
    engine
        Whether the QDQ export is run in ONNX Runtime.
    timed
        Whether building is timed against torch.export.
    """
    import qkit

    row = Row(network.name, network.kind, network.shape)
    row.versions = {"qkit": qkit.__version__, "torch": torch.__version__, "python": platform.python_version()}
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            subject = _subject(row, network)
        except Exception as error:
            row.refused = f"the network itself: {type(error).__name__}: {str(error)[:400]}"
        else:
            _stages(row, subject, engine, timed)
    row.seconds = time.perf_counter() - start
    return row


def _subject(row: Row, network: Network) -> nn.Module | Path:
    torch.manual_seed(0)
    subject = network.make()
    if isinstance(subject, nn.Module):
        settle(subject, network.shape)
        row.norms = len(norms_of(subject))
    return subject


def _stages(row: Row, subject: nn.Module | Path, engine: bool, timed: bool) -> None:
    example = noise(row.shape, 2, seed=1)
    try:
        _graph(row, subject, example)
    except Exception as error:
        row.refused = _said(error)
        return
    row.made = True
    if isinstance(subject, nn.Module):
        _stage(row, "float64", lambda: _own_error(row, subject, example))
    if timed:
        _stage(row, "timing", lambda: _timing(row, subject, example))
    study = _stage(row, "study", lambda: _study(subject, row.shape))
    if study is None:
        return
    if isinstance(subject, nn.Module) and row.norms:
        _stage(row, "fold by hand", lambda: _by_hand(row, subject, study, example))
    if engine:
        _stage(row, "engine", lambda: _engine(row, study))


def _stage(row: Row, name: str, run: Callable[[], Any]) -> Any:
    try:
        return run()
    except Exception as error:
        row.troubles[name] = _said(error)
        return None


def _said(error: Exception) -> str:
    """The sentence of an error of the kit's; of any other its class and last line of the kit too, since it should not come."""
    from qkit import QkitError

    if isinstance(error, QkitError):
        return f"{type(error).__name__}: {error}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "qkit" in Path(frame.filename).parts]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"not the kit's: {type(error).__name__}{place}: {str(error)[:400]}"


def _graph(row: Row, subject: nn.Module | Path, example: Tensor) -> None:
    from qkit.graph import build

    graph = build(subject, example)
    row.front, row.deviation, row.taps = graph.front, float(graph.deviation), len(graph.taps)
    if isinstance(subject, Path):
        _beside_the_engine(row, graph, subject, example)
    row.macs_share, row.elements_share = float(graph.share.macs), float(graph.share.elements)
    row.macs = sum(op.macs for op in graph.operations)
    row.standing = sum(op.kind == "batchnorm" for op in graph.operations)
    for op in graph.operations:
        if op.kind == "float":
            name = op.name.rpartition(":")[2] if ":" in op.name else op.note or op.name
            row.floats[name[:60]] = row.floats.get(name[:60], 0) + 1
    row.notes = list(dict.fromkeys(note[:200] for note in graph.notes.values()))[:12]


@torch.no_grad()
def _own_error(row: Row, model: nn.Module, example: Tensor) -> None:
    from qkit.graph import deviation

    row.own_error = deviation(model(example), copy.deepcopy(model).double()(example.double()))


def _beside_the_engine(row: Row, graph: Graph, file: Path, example: Tensor) -> None:
    """The graph's float output against ONNX Runtime's of the same file, and that against its own with optimizations."""
    from qkit.graph import deviation, float_tensors, run_float

    plain, optimized = _engine_outputs(file, example, optimized=False), _engine_outputs(file, example, optimized=True)
    row.deviation = max(float(graph.deviation), deviation(float_tensors(run_float(graph, (example,))), plain))
    row.own_error = deviation(optimized, plain)


def _engine_outputs(file: Path, example: Tensor, *, optimized: bool) -> list[Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(array) for array in session.run(None, {session.get_inputs()[0].name: example.numpy()})]


def _timing(row: Row, subject: nn.Module | Path, example: Tensor) -> None:
    from qkit.graph import build

    row.build_s = _least(lambda: build(subject, example))
    if not isinstance(subject, nn.Module):
        return
    model = subject
    with torch.no_grad():
        row.float_s = _least(lambda: model(example))
    try:
        row.export_s = _least(lambda: _export(model, example))
    except Exception:  # torch.export's refusals have no class in common; the graph came in by another front then
        row.export_s = None


def _export(model: nn.Module, example: Tensor) -> None:
    from torch.export import Dim, export

    export(model, (example,), dynamic_shapes=({0: Dim.AUTO},), strict=False)


def _least(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of a few calls; the first one warms up and does not count, unless it takes all the patience."""
    spent: list[float] = []
    while len(spent) <= REPEATS and sum(spent) < PATIENCE:
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    return min(spent[1:] or spent)


def _study(subject: nn.Module | Path, shape: tuple[int, ...]) -> Any:
    import qkit

    study = qkit.Study(subject, [noise(shape, IMAGES, seed=2)], [noise(shape, 2, seed=3)], scheme="int8")
    study.calibrate("minmax", progress=False)
    return study


def _by_hand(row: Row, model: nn.Module, study: Any, example: Tensor) -> None:
    folded = fold(model, example)
    row.folded_by_hand = len(folded.layers)
    if not folded.layers:
        return
    kit, hand = study.with_scheme(PER_TENSOR), _study(folded.model, row.shape).with_scheme(PER_TENSOR)
    _compare_codes(row, codes_of(kit), codes_of(hand))
    row.bias_deviation = _biases_apart(kit.graph.biases, hand.graph.biases)


def _compare_codes(row: Row, kit: Mapping[str, Tensor], hand: Mapping[str, Tensor]) -> None:
    both = [name for name in kit if name in hand and kit[name].shape == hand[name].shape]
    differences = [(kit[name] - hand[name]).abs() for name in both]
    row.unmatched = sorted((set(kit) | set(hand)) - set(both))
    row.compared = sum(d.numel() for d in differences)
    row.apart = sum(int((d == 1).sum()) for d in differences)
    row.far = sum(int((d > 1).sum()) for d in differences)
    row.largest = max((int(d.max()) for d in differences if d.numel()), default=0)


def _biases_apart(kit: Mapping[str, Tensor], hand: Mapping[str, Tensor]) -> float:
    """Greatest difference of a bias, relative to its layer's greatest; one that is missing on one side counts whole."""
    most = 0.0
    for name in set(kit) | set(hand):
        ours, other = kit.get(name), hand.get(name)
        known = other if other is not None else ours
        peak = float(known.abs().max()) if known is not None and known.numel() else 0.0
        if peak:
            apart = peak if ours is None or other is None else float((ours - other).abs().max())
            most = max(most, apart / peak)
    return most


def codes_of(study: Any) -> dict[str, Tensor]:
    """The integer codes of every quantized weight under the study's plan, int32, by the weight's name."""
    from qkit.quant.grids import quantize

    plan, found = study.plan, {}
    for name, weight in study.graph.weights.items():
        params = plan.params(name)
        if params is not None:
            chosen = plan.codes(name)
            found[name] = (quantize(weight, params, name=name) if chosen is None else chosen.tensor).to(torch.int32)
    return found


def _engine(row: Row, study: Any) -> None:
    from qkit.engines.compare import compare
    from qkit.engines.onnx import runtime as onnxruntime

    with tempfile.TemporaryDirectory(prefix="qkit-networks-") as folder:
        file = Path(folder) / "network.onnx"
        study.export(file)
        comparison = compare(study, onnxruntime.lane(file, precise=True), progress=False)
    shares = {tap: sums.local.within_one for tap, sums in comparison.taps.items() if sums.local.count}
    counts = {tap: comparison.taps[tap].local.count for tap in shares}
    row.engine_codes = sum(counts.values())
    if row.engine_codes:
        row.engine_within = sum(shares[tap] * counts[tap] for tap in shares) / row.engine_codes
        row.engine_worst_tap = min(shares, key=shares.__getitem__)
        row.engine_worst = shares[row.engine_worst_tap]
