"""Pictures of results show the numbers of the results, are PNG in a notebook, and touch no global style."""

from __future__ import annotations

import re

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from small_networks import mixed_network

from qkit import QkitError, Study
from qkit.execution.metrics import NAMED
from qkit.execution.statistics import Interval
from qkit.figures import plots
from qkit.style import NARROW_COLOUR


@pytest.fixture(scope="module")
def study() -> Study:
    import torch

    draw = torch.Generator().manual_seed(5)
    data = []
    for _ in range(2):
        x = torch.randn(16, 3, 16, 16, generator=draw)
        with torch.no_grad():
            data.append((x, mixed_network()(x).argmax(1)))
    made = Study(mixed_network(), data, data, scheme="int8-per-tensor")
    made.calibrate("mse", progress=False)
    return made


def bars(picture: plots.Picture) -> dict[str, float]:
    ax = picture.figure.axes[0]
    names = [label.get_text() for label in ax.get_yticklabels()]
    return dict(zip(names, [patch.get_width() for patch in ax.patches if patch.get_height() == 0.62], strict=True))


def test_scores_are_the_bars(study: Study) -> None:
    scores = study.evaluate(progress=False)
    drawn = bars(scores.plot())
    assert drawn == pytest.approx({lane: 100 * scores[lane].value for lane in ("float", "int16", "int8")})


def test_sensitivity_shows_the_strongest_first(study: Study) -> None:
    found = study.sensitivity(progress=False)
    picture = found.plot(top=3)
    table = found.table().head(3)
    assert list(bars(picture)) == list(table.index)
    assert list(bars(picture).values()) == pytest.approx(100 * table["loss"].to_numpy())
    assert re.search(rf"\b3\b.*\b{len(found.table())}\b", repr(picture))


def test_intervals_mark_what_is_no_chance() -> None:
    rows = {
        "sure": Interval(0.2, 0.1, 0.3, 50),
        "chance": Interval(0.1, -0.1, 0.3, 50),
        "unbounded": Interval(0.1, -np.inf, np.inf, 1),
    }
    ax = Figure().add_subplot()
    plots.intervals(rows, ax=ax, units=NAMED["top1"].units)
    colours = [mpl.colors.to_hex(patch.get_facecolor()) for patch in ax.patches]
    assert [colour == NARROW_COLOUR for colour in colours] == [True, False, False]
    assert [text.get_text() for text in ax.texts] == ["20.0", "10.0", "10.0"]
    # another metric is no share: its numbers stay as they are
    other = plots.intervals({"sure": rows["sure"]}, ax=Figure().add_subplot(), units=NAMED["psnr"].units)
    assert [text.get_text() for text in other.texts] == ["0.2000"]


def test_depth_has_accumulated_and_local(study: Study) -> None:
    capture = study.capture(progress=False)
    ax = capture.plot().figure.axes[0]
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    table = capture.table()
    for lane in ("int16", "int8"):
        np.testing.assert_allclose(lines[f"{lane}, accumulated"], table[lane, "sqnr"].replace(np.inf, np.nan))
        np.testing.assert_allclose(lines[f"{lane}, local"], table[lane, "local sqnr"].replace(np.inf, np.nan))
    assert not any("int16" in str(line.get_label()) for line in capture.plot(["int8"]).figure.axes[0].get_lines())


def test_maps_are_the_lanes_and_their_differences(study: Study) -> None:
    capture = study.capture(progress=False)
    picture = capture.maps("depthwise", image=1, channels=2)
    images = [ax.get_images()[0].get_array() for ax in picture.figure.axes]
    assert len(images) == 10
    channel = int(picture.figure.axes[0].get_ylabel().removeprefix("channel "))
    tap = capture["depthwise"]
    exact, narrow = tap.float.values[1, channel].numpy(), tap.int8.values[1, channel].numpy()
    np.testing.assert_array_equal(images[0], exact)
    np.testing.assert_array_equal(images[2], narrow)
    np.testing.assert_array_equal(images[4], narrow - exact)
    # the worst channel comes first
    exact, narrow = tap.float.values[1].double(), tap.int8.values[1].double()
    ratio = exact.square().sum((1, 2)) / (narrow - exact).square().sum((1, 2))
    assert ratio[channel] == ratio.nan_to_num(np.inf).min()


def test_ranges_and_channels(study: Study) -> None:
    plans = {"mse": study.plan, "minmax": study.with_calibration(method="minmax").plan}
    ax = plots.ranges(study, "depthwise", plans, ax=Figure().add_subplot())
    ends = {
        str(line.get_label()).partition(":")[0]: line.get_xdata()[0] for line in ax.get_lines() if ":" in str(line.get_label())
    }
    assert ends == pytest.approx({name: float(plan["depthwise"].params.hi) for name, plan in plans.items()})
    with pytest.raises(QkitError, match=r"^depthwise\.weight\b"):
        plots.ranges(study, "depthwise.weight", plans, ax=Figure().add_subplot())
    ax = plots.channels(study, "depthwise.weight", ax=Figure().add_subplot())
    peaks = study.graph.weights["depthwise.weight"].abs().flatten(1).amax(1).sort(descending=True).values
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), peaks, rtol=1e-6)
    with pytest.raises(QkitError, match=r"^average\b.*weight"):
        plots.channels(study, "average", ax=Figure().add_subplot())


def test_a_treatment_and_a_diagnosis(study: Study) -> None:
    treatment = study.ptc(["bias-correction"], progress=False).treatment
    assert treatment is not None
    drawn = bars(treatment.plot())
    assert drawn["before"] == pytest.approx(100 * treatment.scores["before"].value)
    assert len(drawn) == 2 + len(treatment.effects)
    diagnosis = study.diagnose(progress=False)
    assert bars(diagnosis.plot())["8 bits"] == pytest.approx(100 * diagnosis.verdict.narrow.value)


def test_a_picture_is_shown_and_saved(study: Study, tmp_path) -> None:
    before = dict(mpl.rcParams)
    picture = study.evaluate(progress=False).plot()
    bundle = picture._repr_mimebundle_()
    assert bundle["image/png"][:8] == b"\x89PNG\r\n\x1a\n"
    assert re.search(r"\btop1\b.*float, int16, int8", bundle["text/plain"])
    picture.save(tmp_path / "scores.svg")
    assert "<svg" in (tmp_path / "scores.svg").read_text()
    assert dict(mpl.rcParams) == before
