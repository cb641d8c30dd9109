"""Tables of microseconds: how they are read and refused, and what the search makes of them, against sums over all subsets."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from qkit.errors import QkitError
from qkit.figures.front import draw
from qkit.mixed import Costs, search
from qkit.mixed.settings import network
from qkit.report import make
from qkit.report.reading import from_dict
from qkit.report.text import sections
from qkit.study import Study


class Chain(nn.Module):
    """Two convolutions, the second with channels far apart, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.d = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 5)
        with torch.no_grad():
            self.b.weight[0] *= 300.0
            self.d.weight[:, 0] /= 300.0

    def forward(self, x: Tensor) -> Tensor:
        return self.d(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


def likeness(outputs: Tensor, targets: Tensor) -> Tensor:
    return 1.0 - (outputs - targets).square().sum(1) / targets.square().sum(1)


@pytest.fixture(scope="module")
def study() -> Study:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Chain().eval()
        x = torch.randn(48, 3, 8, 8)
    with torch.no_grad():
        y = model(x)
    parts = list(zip(x.split(16), y.split(16), strict=True))
    return Study(model, parts[:2], parts[2:], metric=likeness, scheme="int8-per-tensor")


TIMES = {
    "input": {8: 1.0, 16: 2.0},
    "a": {8: 10.0, 16: 40.0},
    "b": {8: 3.0, 16: 8.0},
    ":mean": {8: 0.5, 16: 0.5},
    "d": {8: 4.0, 16: 3.0},
}


def rows(times: dict[str, dict[int, float]]) -> list[tuple[str, int, float]]:
    return [(layer, bits, time) for layer, by_bits in times.items() for bits, time in by_bits.items()]


@pytest.mark.parametrize(
    "header", ["layer,bits,µs", "Name, Bits ,us", "layer;bits;microseconds", "tap\tbit_width\tTime (us)", "layer,bits,μs"]
)
def test_the_three_forms_are_one_table(tmp_path: Path, header: str) -> None:
    path = tmp_path / "times.csv"
    delimiter = next(sign for sign in ",;\t" if sign in header)
    path.write_text("\n".join([header, *(delimiter.join(map(str, row)) for row in rows(TIMES))]), encoding="utf-8-sig")
    frame = pd.DataFrame(rows(TIMES), columns=["layer", "bits", "us"])
    assert Costs.load(path).times == Costs.load(frame).times == Costs.load(TIMES).times == TIMES
    assert path.name in repr(Costs.load(path))


def test_other_columns_and_empty_lines_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "times.csv"
    path.write_text('kind,bits,cycles,layer,us\nconv,int8,3,"a, b",1.5\n\nconv,16.0,4,"a, b",2\n')
    assert Costs.load(path).times == {"a, b": {8: 1.5, 16: 2.0}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("layer,bits,µs\n", "no rows"),
        ("layer,bits,ms\na,8,1\n", "µs"),
        ("layer,us\na,1\n", "bits"),
        ("bits,us\n8,1\n", "layer"),
        ("layer,bits,us\na,8,-1\n", "line 2"),
        ("layer,bits,us\na,8,nan\n", "line 2"),
        ("layer,bits,us\na,8,inf\n", "line 2"),
        ("layer,bits,us\na,8,\n", "line 2"),
        ("layer,bits,us\na,8,fast\n", "fast"),
        ("layer;bits;us\na;8;1,5\n", "decimal point"),
        ("layer,bits,us\na,8,1,5\n", "decimal point"),
        ("layer,bits,us\na,8\n", "line 2"),
        ("layer,bits,us\na,8.5,1\n", "8.5"),
        ("layer,bits,us\na,wide,1\n", "wide"),
        ("layer,bits,us\n,8,1\n", "line 2"),
        ("layer,bits,us\na,8,1\nb,8,1\na,8,1\n", "line 4.*already"),
        ("layer,bits,us,us\na,8,1,2\n", "more than once"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "times.csv"
    path.write_text(text)
    with pytest.raises(QkitError, match=f"times.csv.*{said}"):
        Costs.load(path)


@pytest.mark.parametrize(
    "table",
    [
        {"a": 3.0},
        {"a": {8: math.nan}},
        {"a": {8: True}},
        {"a": {8: None}},
        {"a": {"8": 1.0, 8: 1.0}},
        {},
        7,
        pd.DataFrame({"layer": [None], "bits": [8], "us": [1.0]}),
        pd.DataFrame({"layer": ["a"], "bits": [8]}),
    ],
)
def test_other_tables_are_refused(table: object) -> None:
    with pytest.raises(QkitError):
        Costs.load(table)  # type: ignore[arg-type]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(QkitError, match="gone"):
        Costs.load(tmp_path / "gone.csv")


def test_a_layer_or_width_that_is_missing_is_named(study: Study) -> None:
    without = {layer: times for layer, times in TIMES.items() if layer != "b"}
    with pytest.raises(QkitError, match=r"1 of 5 layers: b\b.*absent"):
        study.mixed(costs=without, progress=False)
    with pytest.raises(QkitError, match="at 16 bits none of a"):
        study.mixed(costs=TIMES | {"a": {8: 1.0, 32: 4.0}}, progress=False)
    with pytest.raises(QkitError, match="names no layer"):
        study.mixed(costs={"other": {8: 1.0, 16: 2.0}}, progress=False)
    with pytest.raises(QkitError, match="absent"):
        Costs.load(TIMES, absent=-1.0)
    with pytest.raises(QkitError, match="layer_map"):
        study.mixed(layer_map={"a": "conv"}, progress=False)


def test_what_counts_as_nothing_is_said(study: Study) -> None:
    times = {layer: by_bits for layer, by_bits in TIMES.items() if layer not in ("input", ":mean")} | {"ghost": {8: 9.0}}
    net = network(study.graph, study.plan, study.lane("int16"), Costs.load(times, absent=0.25))
    assert net.total(()) == 10.0 + 3.0 + 4.0 + 0.25
    assert [said in remark for said, remark in zip(("input", ":mean", "ghost"), net.remarks, strict=True)] == [True] * 3


def test_a_table_whose_16_bits_are_no_slower_is_refused(study: Study) -> None:
    exchanged = {layer: {8: times[16], 16: times[8]} for layer, times in TIMES.items()}
    for table in (exchanged, {layer: {8: 1.0, 16: 1.0} for layer in TIMES}):
        with pytest.raises(QkitError, match="no longer than"):
            study.mixed(costs=table, progress=False)


def test_layers_by_other_names(study: Study, tmp_path: Path) -> None:
    """By hand, by TIDL's map, by the names of torch's exporter, and in parts that are added."""
    plain = network(study.graph, study.plan, study.lane("int16"), Costs.load(TIMES))
    other = {"conv 1" if layer == "a" else layer: times for layer, times in TIMES.items()}
    assert study.mixed(costs=other, layer_map={"a": "conv 1"}, budget=3, progress=False).costs["a"] == 30.0
    info = tmp_path / "subgraph_0_tidl_net.bin.layer_info.txt"
    info.write_text("1 7 a\n")
    other = {"dataId 7" if layer == "a" else layer: times for layer, times in TIMES.items()}
    assert study.mixed(costs=other, layer_map=info, budget=3, progress=False).costs["a"] == 30.0
    other = {"/a/Conv_output_0" if layer == "a" else layer: times for layer, times in TIMES.items()}
    assert study.mixed(costs=other, budget=3, progress=False).costs["a"] == 30.0
    parts = {layer: times for layer, times in TIMES.items() if layer != "a"}
    parts |= {"a1": {8: 4.0, 16: 10.0}, "a2": {8: 6.0, 16: 30.0}}
    added = network(study.graph, study.plan, study.lane("int16"), Costs.load(parts, names={"a": ("a1", "a2")}))
    assert [(layer.narrow, layer.wide) for layer in added.layers] == [(layer.narrow, layer.wide) for layer in plain.layers]
    with pytest.raises(QkitError, match="several layers"):
        study.mixed(costs=Costs.load(parts, names={"a": "a1", "b": "a1"}, absent=0.0), progress=False)


def test_nodes_of_an_onnx_file_with_their_activations(study: Study, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from qkit.engines.table_names import table_names

    path = tmp_path / "model.onnx"
    torch.onnx.export(study.model, (torch.randn(1, 3, 8, 8),), path, input_names=["x"], output_names=["y"], dynamo=False)
    import onnx

    nodes = [node.name for node in onnx.load(path).graph.node]
    names = table_names([*nodes, "y"], study.graph, path)
    kinds = {tap: [name.rsplit("/", 1)[-1].split("_")[0] for name in given] for tap, given in names.items()}
    assert kinds["a"] == kinds["b"] == ["Conv", "Relu"]
    assert kinds["d"] == ["Gemm", "y"]
    # a row for each node: the activation's time is its layer's
    times = {name: {8: 1.0, 16: 2.0 + (name in names["a"])} for name in nodes} | {":mean": TIMES[":mean"]}
    costs = study.mixed(costs=times, layer_map=path, budget=3, progress=False).costs
    assert (costs["a"], costs["b"], costs["d"]) == (4.0, 2.0, 1.0)


@pytest.mark.parametrize("faster", [(), ("d",), ("d", "a"), (":mean", "d", "input")])
@pytest.mark.parametrize("tolerance", [0.0005, 0.01])
def test_the_fewest_microseconds_of_all_subsets_are_found(study: Study, faster: tuple[str, ...], tolerance: float) -> None:
    times = {
        layer: {8: by[8], 16: 0.9 * by[8] if layer in faster else by[8] + abs(by[16] - by[8])} for layer, by in TIMES.items()
    }
    times["b"] = {8: 3.0, 16: 30.0}
    mixed = search(study, costs=Costs.load(times), tolerance=tolerance, caution=0.0, progress=False)
    net = network(study.graph, study.plan, study.lane("int16"), Costs.load(times))
    least = math.inf
    other = Study(study.model, study.calibration, study.calibration, metric=likeness, scheme=study.scheme)
    subsets = [set(s) for n in range(len(TIMES) + 1) for s in itertools.combinations(range(len(TIMES)), n)]
    scores = other.evaluate({str(i): net.plan(subset) for i, subset in enumerate(subsets)}, progress=False)
    taken = [sum(times[layer.name][16 if i in subset else 8] for i, layer in enumerate(net.layers)) for subset in subsets]
    for i, time in enumerate(taken):
        if scores.lanes[str(i)].mean() >= mixed.selection_target:
            least = min(least, time)
    assert mixed.reached_in_search
    assert mixed.cost == pytest.approx(sum(times[layer][16 if layer in mixed.layers else 8] for layer in times))
    assert least <= mixed.cost + 1e-9 <= 1.02 * least + 1e-9


def test_shares_and_costs_are_of_time(study: Study) -> None:
    mixed = study.mixed(costs=TIMES, tolerance=0.001, caution=0.0, progress=False)
    assert mixed.unit == "µs"
    assert dict(mixed.costs) == {layer: times[16] - times[8] for layer, times in TIMES.items()}
    assert [(s.cost, s.share) for s in mixed.baselines[:2]] == [(18.5, 0.0), (53.5, 1.0)]
    for setting in (mixed.found, *mixed.front, *mixed.baselines):
        assert setting.cost == pytest.approx(sum(TIMES[n][16 if n in setting.layers else 8] for n in TIMES))
        assert setting.share == pytest.approx((setting.cost - 18.5) / 35.0)
    assert [s.cost for s in mixed.front] == sorted(s.cost for s in mixed.front)


def test_every_form_says_the_unit(study: Study) -> None:
    timed = study.mixed(costs=TIMES, tolerance=0.001, caution=0.0, budget=20, progress=False)
    counted = study.mixed(tolerance=0.001, caution=0.0, budget=20, progress=False)
    for mixed, unit, other in ((timed, "µs", "multiply-accumulates"), (counted, "multiply-accumulates", "µs")):
        ax = draw(mixed, ax=Figure().add_subplot())
        report = make(study, mixed=mixed, diagnosis=False, sensitivity=False, progress=False)
        table = sections.mixed(report)
        for said in (
            mixed.summary,
            repr(mixed),
            mixed._repr_html_(),
            ax.get_xlabel(),
            mixed.plot().words,
            sections.mixed_words(report),
        ):
            assert unit in said
            assert other not in said
        assert unit in mixed.table().columns
        assert other not in mixed.table().columns
        assert json.loads(json.dumps(mixed.to_dict()))["unit"] == unit
        assert ("µs" in table.columns[2].head) == (unit == "µs")
        assert (table.rows[0][2].text == f"{mixed.cost:.6g}") == (unit == "µs")
        data = json.loads(json.dumps(report.to_dict()))
        assert sections.mixed_words(from_dict(data)) == sections.mixed_words(report)
        # a report from before costs had a unit
        del data["mixed"]["unit"]
        for setting in (data["mixed"]["found"], *data["mixed"]["front"], *data["mixed"]["baselines"]):
            del setting["cost"]
        assert "multiply-accumulates" in sections.mixed_words(from_dict(data))
    ax = draw(timed, ax=Figure().add_subplot())
    points = {float(x) for line in ax.get_lines() for x in np.asarray(line.get_xdata()).reshape(-1)}
    assert {s.cost for s in timed.baselines} <= points
