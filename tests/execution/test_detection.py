"""Detection's mAP: pycocotools through torchmetrics is the truth, and intervals cover by simulation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import qkit
from qkit import DataError, QkitError
from qkit.execution.metrics import Metric, score_batch
from qkit.execution.statistics import Samples
from qkit.execution.whole import WholeSamples
from qkit.vision import load_torchvision

Images = list[dict[str, torch.Tensor]]


def scene(n: int, *, classes: int = 3, crowds: bool = False, seed: int = 0) -> tuple[Images, Images]:
    """Detections and boxes of so many images: some boxes missed, some moved, and some found that are not there."""
    draw = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        corner = draw.uniform(0, 300, (count, 2))
        return np.concatenate([corner, corner + draw.uniform(30, 150, (count, 2))], axis=1)

    found, there = [], []
    for _ in range(n):
        count, more = draw.integers(0, 7), draw.integers(0, 5)
        truth, labels = boxes(count), draw.integers(0, classes, count)
        there.append({"boxes": torch.tensor(truth), "labels": torch.tensor(labels)})
        if crowds:
            there[-1]["iscrowd"] = torch.tensor(draw.uniform(size=count) < 0.2).long()
        seen = draw.uniform(size=count) < 0.85
        moved = truth[seen] + draw.normal(0, 4, (seen.sum(), 4))
        found.append({
            "boxes": torch.tensor(np.concatenate([moved, boxes(more)])),
            "labels": torch.tensor(np.concatenate([labels[seen], draw.integers(0, classes, more)])),
            "scores": torch.tensor(np.concatenate([draw.beta(5, 2, seen.sum()), draw.beta(2, 5, more)])),
        })  # fmt: skip
    return found, there


def samples(found: Images, there: Images, metric: Metric | None = None) -> WholeSamples:
    made = score_batch(metric or qkit.mean_average_precision(), found, there, None, len(there))
    assert isinstance(made, WholeSamples)
    return made


def coco(found: Images, there: Images, overlaps: list[float] | None = None) -> float:
    load_torchvision()
    from torchmetrics.detection import MeanAveragePrecision

    limits = [0.5 + 0.05 * i for i in range(10)] if overlaps is None else overlaps
    metric = MeanAveragePrecision(
        backend="pycocotools", iou_thresholds=limits, rec_thresholds=np.linspace(0.0, 1.0, 101).tolist()
    )
    metric.update(found, there)
    return float(metric.compute()["map"])


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_map_is_that_of_pycocotools(crowds: bool, seed: int) -> None:
    found, there = scene(40, crowds=crowds, seed=seed)
    assert samples(found, there).value == pytest.approx(coco(found, there), abs=1e-7)
    at_half = qkit.mean_average_precision(overlaps=(0.5,))
    assert samples(found, there, at_half).value == pytest.approx(coco(found, there, [0.5]), abs=1e-7)


def test_a_weight_is_how_often_an_image_is_there() -> None:
    found, there = scene(30, crowds=True, seed=2)
    whole = samples(found, there)
    weights = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30))
    at = np.repeat(np.arange(30), weights)
    again = coco([found[i] for i in at], [there[i] for i in at])
    assert whole._weighing(weights[None].astype(float))[0] == pytest.approx(again, abs=1e-7)
    rest = [i for i in range(30) if i != 4]
    assert whole._without[4] == pytest.approx(coco([found[i] for i in rest], [there[i] for i in rest]), abs=1e-7)


def test_batches_join_to_the_whole_set() -> None:
    found, there = scene(24)
    parts = [samples(found[i : i + 8], there[i : i + 8]) for i in range(0, 24, 8)]
    whole, joined = samples(found, there), Samples.joined(parts)
    assert np.array_equal(joined.values, whole.values)
    assert joined.values.mean() == pytest.approx(whole.value, abs=1e-12)
    assert joined.interval() == whole.interval()


def test_only_the_best_of_a_label_count_in_an_image() -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    there = [{"boxes": box, "labels": torch.tensor([1])}] * 2
    far = box.repeat(3, 1) + 50.0
    found = [{
        "boxes": torch.cat([far, box]), "labels": torch.ones(4).long(), "scores": torch.tensor([0.9, 0.8, 0.7, 0.6])
    }] * 2  # fmt: skip
    assert samples(found, there, qkit.mean_average_precision(most=3)).value == 0.0
    assert samples(found, there, qkit.mean_average_precision(most=4)).value == pytest.approx(0.25)


def worse(found: Images, seed: int) -> Images:
    """Another lane's detections: boxes and scores a little off."""
    draw = np.random.default_rng(seed)
    return [
        {
            **image,
            "boxes": image["boxes"] + torch.tensor(draw.normal(0, 3.0, (len(image["boxes"]), 4))),
            "scores": image["scores"] + torch.tensor(draw.normal(0, 0.08, len(image["scores"]))),
        }
        for image in found
    ]


def test_lanes_are_compared_in_pairs() -> None:
    found, there = scene(80)
    first, second = samples(found, there), samples(worse(found, 1), there)
    loss = first.minus(second)
    assert loss.value == pytest.approx(first.value - second.value)
    assert loss.low > 0.0
    assert loss.p is not None
    assert loss.p < 0.01
    assert loss.high - loss.low < 0.6 * (first.interval().high - first.interval().low), "of pairs, not of two sets"
    assert first.minus(first).to_dict() == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 80, "p": 1.0}
    same = first.minus(samples(found, there))
    assert (same.low, same.value, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    back = second.minus(first)
    assert (back.low, back.high) == pytest.approx((-loss.high, -loss.low))


def test_few_samples_prove_little() -> None:
    found, there = scene(3, seed=5)
    nothing = [
        {**image, "scores": image["scores"][:0], "labels": image["labels"][:0], "boxes": image["boxes"][:0]} for image in found
    ]
    loss = samples(found, there).minus(samples(nothing, there))
    assert loss.p is not None
    assert loss.p >= 0.25
    assert samples(found[:1], there[:1]).interval().high == math.inf


@pytest.mark.slow
@pytest.mark.parametrize("n", [40, 100])
def test_intervals_cover(n: int) -> None:
    """The loss of a lane in 95 % of the sets, the score itself in nearly as many: few images flatter mAP."""
    found, there = scene(2000, seed=7)
    first, second = samples(found, there), samples(worse(found, 8), there)
    covered = []
    draw = np.random.default_rng(n)
    for _ in range(300):
        at = draw.integers(0, 2000, n)
        mine, other = (WholeSamples([whole.records[i] for i in at], whole.score, "mAP") for whole in (first, second))
        loss, score = mine.minus(other), mine.interval()
        covered.append((loss.low <= first.value - second.value <= loss.high, score.low <= first.value <= score.high))
    of_loss, of_score = np.mean(covered, axis=0)
    assert 0.92 <= of_loss <= 0.99
    assert 0.88 <= of_score <= 0.99


@pytest.mark.slow
def test_equal_lanes_seldom_differ() -> None:
    """Lanes that are off alike: p below 0.05 in one of twenty sets."""
    found, there = scene(2000, seed=9)
    first, second = (samples(worse(found, seed), there) for seed in (10, 11))
    draw = np.random.default_rng(12)
    chances = []
    for _ in range(300):
        at = draw.integers(0, 2000, 60)
        swapped = draw.uniform(size=60) < 0.5
        pairs = [(first.records[i], second.records[i])[:: -1 if swap else 1] for i, swap in zip(at, swapped, strict=True)]
        mine, other = (WholeSamples(rows, first.score, "mAP") for rows in zip(*pairs, strict=True))
        chances.append(mine.minus(other).p)
    assert 0.01 <= np.mean(np.array(chances) < 0.05) <= 0.09


def bad(**changes: Any) -> Images:
    image = {"boxes": torch.tensor([[1.0, 1.0, 5.0, 5.0]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
    return [{key: value for key, value in {**image, **changes}.items() if value is not None}]


@pytest.mark.parametrize(
    ("found", "there", "said"),
    [
        (torch.zeros(1, 4), bad(), r"outputs.*Tensor.*decode="),
        (bad(), torch.zeros(1, 5), r"targets.*Tensor.*collate_fn"),
        (bad(scores=None), bad(), "image 0 have no scores"),
        (bad(), bad(labels=None), "targets of image 0 have no labels"),
        (bad(labels=torch.tensor([1, 2])), bad(), r"\(1, 4\).*\(2,\)"),
        (bad(boxes=torch.zeros(1, 5)), bad(), r"\(1, 5\)"),
        (bad(boxes=torch.full((1, 4), math.nan)), bad(), "NaN"),
        (bad(labels=torch.tensor([0.5])), bad(), "class indices"),
        (bad(), bad(boxes=torch.tensor([[9.0, 9.0, 2.0, 3.0]])), "box_convert"),
        ([], bad(), r"\b0\b.*\b1\b.*every image"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(found: Any, there: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        samples(found, there)


def test_a_set_without_boxes_has_no_score() -> None:
    none = bad(boxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), scores=torch.zeros(0))
    with pytest.raises(DataError, match="targets"):
        _ = samples(bad(), none).value


@pytest.mark.parametrize("options", [{"overlaps": ()}, {"overlaps": (50,)}, {"most": 0}, {"decode": 3}, {"tolerance": 0.0}])
def test_arguments_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(QkitError):
        qkit.mean_average_precision(**options)


# ---------------------------------------------------------------- a study of a detector


class Blobs(nn.Module):
    """Finds bright squares: a heat map by class and the squares' size, eight pixels a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(2, 8, 8, stride=8)
        self.heads = nn.Conv2d(8, 3, 1)
        with torch.no_grad():
            self.body.weight.zero_()
            self.body.bias.zero_()
            for k in range(2):
                self.body.weight[k, k] = 1.0 / 64
                self.heads.weight[k] = 0.0
                self.heads.weight[k, k, 0, 0] = 8.0
            self.heads.weight[2] = 0.0
            self.heads.weight[2, :2, 0, 0] = 8.0
            self.heads.bias.copy_(torch.tensor([-2.0, -2.0, 0.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.heads(torch.relu(self.body(x)))


def decode(outputs: torch.Tensor) -> Images:
    found = []
    for image in outputs:
        scores, labels = image[:2].sigmoid().max(0)
        rows, columns = torch.nonzero(scores > 0.3, as_tuple=True)
        side = image[2, rows, columns]
        corner = torch.stack([columns, rows], 1) * 8.0
        boxes = torch.cat([corner, corner + side[:, None].expand(-1, 2)], 1)
        found.append({"boxes": boxes, "labels": labels[rows, columns], "scores": scores[rows, columns]})
    return found


def squares(batches: int, size: int = 8) -> list[tuple[torch.Tensor, Images]]:
    draw = torch.Generator().manual_seed(0)
    data = []
    for _ in range(batches):
        x, targets = 0.05 * torch.rand(size, 2, 32, 32, generator=draw), []
        for image in x:
            cells = torch.randperm(16, generator=draw)[:3]
            labels = torch.randint(0, 2, (3,), generator=draw)
            boxes = []
            for cell, label in zip(cells.tolist(), labels.tolist(), strict=True):
                row, column = 8 * (cell // 4), 8 * (cell % 4)
                image[label, row : row + 8, column : column + 8] += 0.6 + 0.4 * torch.rand((), generator=draw)
                boxes.append([column, row, column + 6.5, row + 6.5])
            targets.append({"boxes": torch.tensor(boxes), "labels": labels})
        data.append((x, targets))
    return data


@pytest.fixture(scope="module")
def study() -> qkit.Study:
    data = squares(6)
    made = qkit.Study(Blobs().eval(), data, data, metric=qkit.mean_average_precision(decode=decode), scheme="int8-per-tensor")
    made.calibrate(progress=False)
    return made


def test_a_study_scores_by_map(study: qkit.Study) -> None:
    scores = study.evaluate(progress=False)
    there = [image for _, targets in study.evaluation for image in targets]
    with torch.no_grad():
        found = [image for x, _ in study.evaluation for image in decode(study.model(x))]
    assert scores["float"].value == pytest.approx(coco(found, there), abs=1e-6)
    assert scores["float"].low < scores["float"].value < scores["float"].high
    assert scores.loss("int16").value == pytest.approx(scores["float"].value - scores["int16"].value)
    assert scores.table().loc["float", "low"] == scores["float"].low
    assert study.verdict(progress=False).name in ("no-degradation", "quantization", "inconclusive")


def test_what_ruins_a_detector_is_found(study: qkit.Study) -> None:
    ruined = study.with_plan(study.plan.with_range("heads", -2.0, 1.0))
    diagnosis = ruined.diagnose(progress=False)
    assert diagnosis.causes
    best = diagnosis.causes[0]
    assert (best.layer, best.kind) == ("heads", "range-too-narrow")
    assert best.gain is not None
    assert best.gain.low > 0.0
    swept = ruined.sensitivity(progress=False)
    assert swept.table().index[0] == "heads"
    assert swept.effect([op.name for op in swept.layers].index("heads")).p < 0.01  # type: ignore[operator]


def test_a_report_of_a_detector_is_read_again(study: qkit.Study, tmp_path: Path) -> None:
    study.report(tmp_path / "detector.json", worst=1, progress=False)
    read = qkit.report.read(tmp_path / "detector.json")
    assert read.metric["name"] == "mAP"
    scores = study.evaluate(progress=False)
    assert read.scores.loc["int8", "loss high"] == pytest.approx(scores.loss("int8").high)
    assert read.per_sample is not None
    assert read.per_sample["int8"].mean() == pytest.approx(scores["int8"].value)


def test_other_parts_score_by_map_too(study: qkit.Study) -> None:
    ruined = study.with_plan(study.plan.with_range("heads", -2.0, 1.0))
    mixed = ruined.mixed(progress=False)
    assert mixed.found.layers == ("heads",)
    assert mixed.found.evaluation.value == pytest.approx(study.evaluate(("int16",), progress=False)["int16"].value, abs=0.01)
    effect = ruined.effect("heads")
    assert effect.scores.mean() == pytest.approx(ruined.score().value) == ruined.evaluate(progress=False)["int8"].value


def test_without_boxes_in_the_data_it_says_so(study: qkit.Study) -> None:
    bare = study.with_data(evaluation=[x for x, _ in study.evaluation])
    with pytest.raises(DataError, match="targets"):
        bare.evaluate(progress=False)
