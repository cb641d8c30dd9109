"""The tables of what stands behind or beside a report: data, remedies tried, treatment, mixed precision, engines, lint, plan."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from qkit.linting.finding import taken
from qkit.listing import few
from qkit.ptq.treatment import decibels_of
from qkit.report.comparing.changes import grid_range
from qkit.report.contents.data import Report
from qkit.report.text.tables import Cell, Column, Table
from qkit.style import NOTHING, Units, decibels, is_missing, number, share, units_of

#: Taps of an engine that are shown, those that agree least first, and layers that a finding of lint names.
MOST_TAPS = 20
MOST_LAYERS = 6
#: The plan's own JSON is put into the page up to so many characters.
MOST_PLAN = 400_000


def _words(*heads: str) -> tuple[Column, ...]:
    return tuple(Column(head, words=True) for head in heads)


def _number(value: Any, show: Any) -> Cell:
    return Cell(show(value), None if is_missing(value) or isinstance(value, str) else float(value))


def _amount(units: Units, figure: dict[str, float] | None) -> str:
    return "not measured" if figure is None else units.amount(figure["value"], figure["low"], figure["high"])


def data(report: Report) -> list[tuple[str, str]]:
    """What was measured on, as pairs of a term and what there is to say."""
    evaluation, calibration = report.data["evaluation"], report.data["calibration"]
    shapes = " and ".join("×".join(map(str, shape)) or "a number" for shape in evaluation["shapes"])
    count = "an unknown number of" if calibration["samples"] is None else number(calibration["samples"])
    found = [
        ("calibration", f"{count} samples; the ranges were chosen on them"),
        (
            "evaluation",
            f"{number(evaluation['samples'])} samples of {shapes} in {number(evaluation['batches'])} batches",
        ),
        ("figures of layers", f"on the first {number(report.layer_samples)} of the evaluation samples"),
        ("targets", "given with the data" if evaluation["targets"] else "none"),
    ]
    if report.data["same"]:
        found.append(("caution", "the evaluation data are the calibration data: scores are too good"))
    if evaluation["fingerprint"]:
        said = "a hash of all images and targets in order; equal ones mean the same data, and nothing can be read from it"
        found.append(("fingerprint", f"{evaluation['fingerprint']}, {said}"))
    return found


def tried(report: Report) -> Table:
    """Remedies with the score before and after, on the report's samples; without rows where none was tried."""
    units = units_of(report.metric)
    unit = f" ({units.points})" if units.points else ""
    table = Table(
        (
            *_words("remedy", "for the cause"),
            Column("before"),
            Column("after"),
            Column(f"gain{unit}"),
            Column("95 % interval"),
            Column(f"still lost{unit}"),
            Column("95 % interval"),
        )
    )
    for row in report.tried:
        alone = row["what"] == "alone"
        remedy = f"{row['remedy']} at {row['layer'] or 'the whole network'}" if alone else f"all, in order: {row['text']}"
        gain, loss = row["gain"], row["loss"]
        table.rows.append(
            [
                Cell(remedy),
                Cell(row["cause"] if alone else NOTHING),
                _number(row["before"]["value"], units.score),
                _number(row["score"]["value"], units.score),
                _number(gain["value"], lambda v: units.loss(v, sign=True)),
                Cell(units.interval(gain["low"], gain["high"], loss=True)),
                _number(loss["value"], units.loss),
                Cell(units.interval(loss["low"], loss["high"], loss=True)),
            ]
        )
    return table


def treatment(report: Report) -> Table:
    """The steps of post-training calibration; without rows where there was none."""
    units = units_of(report.metric)
    gain = f"gain ({units.points})" if units.points else "gain"
    table = Table(
        (
            *_words("step", "kept"),
            Column("SQNR before (dB)"),
            Column("SQNR (dB)"),
            Column("score"),
            Column(gain),
            Column("95 % interval"),
            Column("seconds"),
            *_words("why"),
        )
    )
    for step in report.treatment["steps"] if report.treatment else ():
        ratios = [decibels_of(step[key]) for key in ("error_before", "error")]
        table.rows.append(
            [
                Cell(step["step"]),
                Cell("kept" if step["kept"] else "undone"),
                *(_number(ratio, decibels) for ratio in ratios),
                _number(step["score"]["value"], units.score),
                _number(step["gain"]["value"], lambda v: units.loss(v, sign=True)),
                Cell(units.interval(step["gain"]["low"], step["gain"]["high"], loss=True)),
                _number(step["seconds"], lambda v: number(v, 3)),
                Cell(step["why"]),
            ]
        )
    return table


def treatment_words(report: Report) -> str:
    """The outcome of post-training calibration in a sentence or two."""
    if report.treatment is None:
        return ""
    units, t = units_of(report.metric), report.treatment
    before, after, exact = (units.score(t[name]["value"]) for name in ("before", "after", "float"))
    return (
        f"{t['metric']} {before} → {after}, float {exact}, on {t['after']['n']} evaluation samples; still lost "
        f"{_amount(units, t['loss'])}. Steps were fitted to {t['fitted']} calibration samples and judged on {t['held_out']} "
        f"others: one that did not help there was undone. The scores here decided nothing. {' '.join(t['remarks'])}"
    ).rstrip()


def mixed(report: Report) -> Table:
    """The found choice of 16-bit layers, and the simple ones beside it; without rows where none was searched."""
    units = units_of(report.metric)
    loss = f"loss ({units.points})" if units.points else "loss"
    found = report.mixed
    timed = _timed(found)
    columns = (
        *_words("choice"),
        Column("layers"),
        Column("time (µs)" if timed else "share of MACs"),
        Column("score"),
        Column(loss),
        Column("95 % interval"),
    )
    table = Table((*columns, *_words("target")))
    for setting in (found["found"], *found["baselines"], *found["front"]) if found else ():
        figure = setting["loss"]
        table.rows.append(
            [
                Cell(setting["name"]),
                _number(len(setting["layers"]), number),
                _number(setting["cost"], _microseconds) if timed else _number(setting["share"], share),
                _number(setting["evaluation"]["value"], units.score),
                _number(figure["value"], units.loss),
                Cell(units.interval(figure["low"], figure["high"], loss=True)),
                Cell("reached" if setting["reached"] else "missed"),
            ]
        )
    return table


def _timed(found: dict[str, Any] | None) -> bool:
    # reports that are older, or that somebody else wrote, may leave costs out
    settings = [found["found"], *found["baselines"], *found["front"]] if found else []
    return found is not None and found.get("unit") == "µs" and all(isinstance(s.get("cost"), float | int) for s in settings)


def _microseconds(value: float) -> str:
    return f"{value:.6g}"


def mixed_words(report: Report) -> str:
    """What the search found, in sentences."""
    found = report.mixed
    if found is None:
        return ""
    units, best = units_of(report.metric), found["found"]
    layers = ", ".join(best["layers"]) or "none"
    reached = "reaches" if found["reached"] else "does not reach"
    cost = f"{share(best['share'])} of the multiply-accumulates"
    if _timed(found):
        ends = [s for s in found["baselines"] if s["name"] in ("none", "all")]
        cost = ", ".join(
            [f"{_microseconds(best['cost'])} µs", *(f"with {s['name']} {_microseconds(s['cost'])} µs" for s in ends)]
        )
    text = f"In 16 bits: {layers}; {cost}. This {reached} the target of "
    score, exact = units.score(best["evaluation"]["value"]), units.score(found["float"]["value"])
    text += f"{units.score(found['target'])} with {score}, float {exact}. "
    text += f"Chosen on the {found['select']} data among {found['scored']} sets. "
    return (text + " ".join(found["remarks"])).rstrip()


def engine(entry: dict[str, Any]) -> Table:
    """An engine's taps, those that agree least with the simulation on equal inputs first."""
    heads = ("differ by 0", "by 1 step", "by more", "greatest (steps)", "SQNR to simulation (dB)", "on equal inputs (dB)")
    table = Table((*_words("tap", "kind"), *(Column(head, "equal inputs" if i < 4 else "") for i, head in enumerate(heads))))
    keys = [*(f"equal inputs {name}" for name in ("same", "one", "more", "largest")), "sqnr simulation", "sqnr equal inputs"]

    def whole(value: Any) -> str:
        return NOTHING if is_missing(value) else number(round(value))

    shows = (share, share, share, whole, decibels, decibels)

    def agreement(item: tuple[str, dict[str, Any]]) -> float:
        parts = [item[1].get(key) for key in keys[:2]]
        return 2.0 if None in parts else float(sum(p for p in parts if p is not None))

    for tap, row in sorted(entry["taps"].items(), key=agreement)[:MOST_TAPS]:
        cells = [_number(row.get(key), show) for key, show in zip(keys, shows, strict=True)]
        table.rows.append([Cell(tap, name=True), Cell(str(row.get("kind", ""))), *cells])
    return table


def findings(report: Report) -> Table:
    """Lint's findings, a row for all of one rule and severity, errors one by one; without rows where there are none."""
    heads = _words("severity", "rule", "where", "what", "what to do")
    table = Table((heads[0], Column("found"), *heads[1:]))
    grouped: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for i, f in enumerate(report.lint["findings"] if report.lint else ()):
        grouped.setdefault((f["severity"], f["rule"], i if f["severity"] == "error" else -1), []).append(f)
    for (severity, rule, _), found in grouped.items():
        first = found[0]
        layers = list(dict.fromkeys(f["layer"] for f in found if f["layer"]))
        place = few(layers, MOST_LAYERS)
        if first["file"] is not None:
            place = f"{place} ({first['file']}:{first['line']})" if place else f"{first['file']}:{first['line']}"
        example = "" if len(found) == 1 else f"{first['layer'] or first['file'] or 'the first'}: "
        texts = (place, f"{example}{first['message']}", first["cure"])
        table.rows.append([Cell(severity), Cell(str(len(found)), float(len(found))), Cell(rule), *map(Cell, texts)])
    return table


def lint_words(report: Report) -> str:
    """Counts, or why lint did not look."""
    found = report.lint
    if found is None:
        return f"Lint: {report.settings.get('lint', 'left out')}"
    counts = ", ".join(f"{n} {severity}{'' if n == 1 else 's'}" for severity, n in found["counts"].items())
    text = f"{found['model']}: {counts}; {taken(found.get('front'), traced=found['traced'])}."
    if len(found["findings"]) > len(findings(report).rows):
        text += " What one rule finds in several places is one row, with the first in full; the JSON has all."
    return " ".join([text, *found["remarks"]])


def plan(report: Report) -> Table:
    """Every grid: rule, step, range, and how it was found."""
    heads = _words("tensor", "rule")
    columns = (
        *heads,
        Column("scale"),
        Column("zero point"),
        Column("codes"),
        Column("least"),
        Column("greatest"),
        *_words("range by"),
    )
    table = Table(columns)
    for name, grid in report.plan["grids"].items():
        spec = grid["spec"]
        rule = f"{spec['bits']} bits, {'symmetric' if spec['symmetric'] else 'affine'}"
        scale, zero = (np.atleast_1d(np.asarray(grid[key])) for key in ("scale", "zero_point"))
        one = len(scale) == 1
        rule += "" if one else f", {len(scale)} channels"
        lo, hi = grid_range(grid)
        ends = f"{number(float(scale.min()))} to {number(float(scale.max()))}"
        zeros = f"{zero.min()}" if zero.min() == zero.max() else f"{zero.min()} to {zero.max()}"
        method = grid["method"] + (", codes not by rounding" if "codes" in grid else "")
        table.rows.append(
            [
                Cell(name, name=True),
                Cell(rule),
                Cell(number(float(scale[0])) if one else ends, float(scale.max())),
                Cell(zeros.replace("-", "−"), float(zero.max())),
                Cell(f"{grid['qmin']} to {grid['qmax']}".replace("-", "−")),
                _number(lo, number),
                _number(hi, number),
                Cell(method),
            ]
        )
    return table


def plan_words(report: Report) -> str:
    """What holds for the whole plan."""
    grids = report.plan["grids"]
    bias = "in float" if report.plan["bias_bits"] is None else f"in {report.plan['bias_bits']} bits"
    text = f"{len(grids)} grids in the {report.narrow} lane; biases {bias}."
    if report.plan.get("accumulator_bits"):
        text += f" Accumulators wrap around at {report.plan['accumulator_bits']} bits."
    if report.plan.get("arithmetic"):
        inside = ", ".join(f"{what} {how}" for what, how in report.plan["arithmetic"].items())
        text += f" Operations without weights compute in integers: {inside}; the others in float."
    if report.plan.get("corrections"):
        text += f" The biases of {len(report.plan['corrections'])} layers are corrected."
    if any("codes" in grid for grid in grids.values()):
        text += " Codes of weights that were not made by rounding are in the plan that plan.save writes, not here."
    return text


def plan_json(report: Report) -> str:
    """The plan as `qkit.Plan.load` reads it, a line for each tensor; "" where it is too long for a page, or lacks codes."""
    if any("codes" in grid for grid in report.plan["grids"].values()):
        return ""
    head = {key: value for key, value in report.plan.items() if key != "grids"}
    rows = (f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(grid)}" for name, grid in report.plan["grids"].items())
    start = json.dumps(head, ensure_ascii=False)[:-1]
    text = f'{start}, "grids": {{\n' + ",\n".join(rows) + "\n}}"
    return text if len(text) <= MOST_PLAN else ""
