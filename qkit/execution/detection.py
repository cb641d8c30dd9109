"""Detection's mean average precision: boxes found against boxes that are there, by COCO's rules.

Detections are matched to boxes image by image when a batch is scored, and only the outcome is kept. The average precision is then
that of a set in which every image has a weight, which pycocotools and torchmetrics do not offer and resampling needs; the tests
hold it to theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qkit.errors import DataError, QkitError
from qkit.execution.metrics import Metric
from qkit.execution.whole import Weighing

__all__ = ["mean_average_precision"]

#: Overlaps from which on a detection is right: COCO's 0.5 to 0.95.
THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
#: Recalls at which precision is read.
_RECALLS = np.linspace(0.0, 1.0, 101)
#: Weights times detections that are handled at once.
_ROOM = 1 << 21

Decode = Callable[[Any], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Detected:
    """What a lane made of one image.

    Attributes
    ----------
    labels, scores
        Of the detections, int64 and float64 (D,); the best `most` of each label, best first.
    hits, ignored
        Whether each found a box of its label, and whether it lies on a crowd and counts neither way; bool (T, D) by overlap.
    there
        Labels of the boxes that are there, crowds left out, int64 (G,).
    """

    labels: np.ndarray
    scores: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    there: np.ndarray


def mean_average_precision(
    decode: Decode | None = None,
    *,
    overlaps: Sequence[float] = THRESHOLDS,
    most: int = 100,
    tolerance: float | None = None,
    name: str = "mAP",
) -> Metric:
    """Detection's mAP as a metric: COCO's average precision, the mean over labels and overlaps, with intervals by resampling.

    Targets are a list with a dict for every image: ``boxes``, float (G, 4), the corners x1, y1, x2, y2 in any unit; ``labels``,
    integers (G,); and, where there are crowds, ``iscrowd``, 0 or 1 (G,). Detections are the same with ``scores``, (D,), in place
    of ``iscrowd``. An image without boxes has tensors of shape (0, 4) and (0,).

    Parameters
    ----------
    decode
        What makes detections of the network's raw outputs, with whatever the deployed network does behind them (anchors,
        non-maximum suppression): ``decode(outputs)`` is a list with a dict for every image of the batch. It is called once a
        batch and lane. None where the outputs are such a list.
    overlaps
        Intersections over union from which on a detection is right; ``(0.5,)`` for AP50.
    most
        Detections of a label that count in an image, the best ones.
    tolerance
        Loss that still counts as close; one point by default.
    name
        Said beside every figure.

    Returns
    -------
    Metric
        For ``qkit.Study(…, metric=)``.

    Raises
    ------
    QkitError
        If `overlaps` are not between 0 and 1, or `most` is below 1.

    Notes
    -----
    Precision is made to fall with recall and read at 101 recalls. Labels without a box are left out of the mean. Small, medium
    and large boxes are not told apart (COCO's "AP", with all areas). The score is one of the whole set, so its interval is over
    sets of images drawn with replacement, the same ones in every lane, and what needs a figure an image takes the jackknife's
    pseudo-values.
    """
    limits = tuple(float(overlap) for overlap in overlaps)
    if not limits or not all(0.0 < overlap <= 1.0 for overlap in limits):
        raise QkitError(f"overlaps={tuple(overlaps)}: give intersections over union above 0 and up to 1, such as (0.5,).")
    if most < 1:
        raise QkitError(f"most={most}: at least one detection of a label has to count in an image.")
    if decode is not None and not callable(decode):
        raise QkitError(f"decode is a function of the network's outputs that gives a list of detections, not {decode!r}.")

    return Metric(_Records(decode, limits, most, name), name, "%", tolerance=tolerance, whole=_prepared)


@dataclass(frozen=True)
class _Records:
    """What a lane made of every image of a batch, as ``function(outputs, targets)``."""

    decode: Decode | None
    limits: tuple[float, ...]
    most: int
    name: str

    def __call__(self, outputs: Any, targets: Any) -> list[Detected]:
        there = _boxes(targets, "targets", "iscrowd")
        decode = self.decode
        found = _boxes(outputs if decode is None else decode(outputs), "outputs" if decode is None else "decode()", "scores")
        if len(found) != len(there):
            raise DataError(
                f"{self.name}: there are detections of {len(found)} images and targets of {len(there)}: decode() has to give a "
                "dict for every image of the batch, also where nothing is found, and the loader a dict of boxes and labels."
            )
        return [_matched(*mine, *truth, self.limits, self.most) for mine, truth in zip(found, there, strict=True)]


def _boxes(images: Any, what: str, third: str) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Boxes, labels, and scores or crowds of every image."""
    if not isinstance(images, (list, tuple)) or not all(isinstance(image, Mapping) for image in images):
        kind = type(images).__name__
        if isinstance(images, (list, tuple)):
            kind += f" of {type(images[0]).__name__}"
        cure = {
            "targets": "let the loader's collate_fn leave them a list (torchvision: datasets.wrap_dataset_for_transforms_v2)",
            "outputs": "pass qkit.mean_average_precision(decode=…), a function that makes such a list of the outputs",
        }.get(what, "let it give such a list")
        raise DataError(f"mAP needs {what} as a list with a dict of boxes and labels for every image, not a {kind}: {cure}.")
    return [_image(image, f"{what} of image {at}", third) for at, image in enumerate(images)]


def _image(image: Mapping[str, Any], where: str, third: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    wanted = ("boxes", "labels", *(("scores",) if third == "scores" else ()))
    if missing := [key for key in wanted if key not in image]:
        raise DataError(f"mAP: {where} have no {' and no '.join(missing)}, but {', '.join(map(str, image)) or 'nothing'}.")
    boxes, labels = (_array(image[key]) for key in ("boxes", "labels"))
    boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    extra = _array(image[third]) if third in image else np.zeros(len(boxes))
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != (len(boxes),) or extra.shape != (len(boxes),):
        raise DataError(
            f"mAP: {where} have boxes of shape {boxes.shape}, labels of {labels.shape} and {third} of {extra.shape}: give (D, 4) "
            "and twice (D,), one label and one score a box."
        )
    if labels.size and (labels != np.round(labels)).any():
        raise DataError(f"mAP: {where} have labels that are no whole numbers, such as {float(labels[0]):g}: give class indices.")
    if not (np.isfinite(boxes).all() and np.isfinite(extra).all()):
        raise DataError(f"mAP: {where} have boxes or {third} that are NaN or infinite: leave such detections out in decode().")
    if third != "scores" and (turned := int(((boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])).sum())):
        raise DataError(
            f"mAP: {where} have {turned} boxes that end before they begin: give corners x1, y1, x2, y2; of x, y, width, height "
            "torchvision.ops.box_convert(boxes, 'xywh', 'xyxy') makes them."
        )
    return boxes, labels.astype(np.int64), extra


def _array(value: Any) -> np.ndarray:
    return np.asarray(torch.as_tensor(value).detach().cpu().double().numpy())


def overlaps_of(boxes: np.ndarray, others: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (D, 4) with others (G, 4), float64 (D, G); of crowds, over the box's own area."""
    low, high = np.maximum(boxes[:, None, :2], others[None, :, :2]), np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0.0, None).prod(2)
    own, theirs = (np.clip(b[:, 2:] - b[:, :2], 0.0, None).prod(1) for b in (boxes, others))
    united = np.where(crowd[None, :], own[:, None], own[:, None] + theirs[None, :] - shared)
    return np.asarray(np.divide(shared, united, out=np.zeros_like(shared), where=united > 0.0))


def _matched(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, truth: np.ndarray, truth_labels: np.ndarray, crowd: np.ndarray,
    limits: Sequence[float], most: int,
) -> Detected:  # fmt: skip
    """Detections matched to boxes of their label, the best first, each to the box that it overlaps most."""
    crowds = crowd > 0.0
    parts = []
    for label in np.unique(labels):
        at = np.flatnonzero(labels == label)
        at = at[np.argsort(-scores[at], kind="stable")[:most]]
        mine = truth_labels == label
        parts.append((at, *_of_label(overlaps_of(boxes[at], truth[mine], crowds[mine]), crowds[mine], limits)))
    empty = (np.zeros(0, np.int64), *(np.zeros((len(limits), 0), bool),) * 2)
    order, hits, ignored = (np.concatenate(rows, axis=-1) for rows in zip(empty, *parts, strict=True))
    return Detected(labels[order], scores[order], hits, ignored, truth_labels[~crowds])


def _of_label(overlap: np.ndarray, crowds: np.ndarray, limits: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Hits and what is ignored, bool (T, D), of detections whose overlaps with G boxes are (D, G)."""
    bars = np.minimum(np.asarray(limits), 1.0 - 1e-10)
    hits, ignored = np.zeros((2, len(bars), len(overlap)), bool)
    free = np.ones((len(bars), overlap.shape[1]), bool)
    near = np.flatnonzero((overlap >= bars.min()).any(1)) if overlap.size else np.zeros(0, np.int64)
    for at in near:
        fits = (overlap[at] >= bars[:, None]) & (free | crowds)
        for kind, told in ((~crowds, hits), (crowds, ignored)):
            # of equal overlaps the last one, as COCO's evaluation has it
            reach = np.where(fits & kind, overlap[at], -1.0)[:, ::-1]
            best = reach.shape[1] - 1 - reach.argmax(1)
            rows = np.flatnonzero((reach.max(1) >= 0.0) & ~hits[:, at])
            told[rows, at] = True
            free[rows, best[rows]] = False
    return hits, ignored


@dataclass(frozen=True)
class _Label:
    """All detections of one label, the best first.

    Attributes
    ----------
    image
        Of each detection, int64 (D,).
    hits, ignored
        bool (T, D).
    there
        Boxes by image, float64 (N,).
    touched
        Images that have a box or a detection.
    """

    image: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    there: np.ndarray
    touched: np.ndarray

    def precision(self, weights: np.ndarray) -> np.ndarray:
        """Average precision of every set, the mean over overlaps, float64 (B,); NaN where a set has no box of this label."""
        found = np.full(len(weights), np.nan)
        own = weights[:, self.touched]
        whole = (own == 1.0).all(1)
        if whole.any():
            found[whole] = self._precision(np.ones((1, weights.shape[1])))
        rows = np.flatnonzero(~whole)
        step = max(_ROOM // max(len(self.image), 1), 1)
        for at in range(0, len(rows), step):
            part = rows[at : at + step]
            found[part] = self._precision(weights[part])
        return found

    def _precision(self, weights: np.ndarray) -> np.ndarray:
        boxes = weights @ self.there
        counted = weights[:, self.image]
        alike = not self.ignored.any()
        sums = counted.cumsum(1)
        found = np.zeros(len(weights))
        for hits, ignored in zip(self.hits, self.ignored, strict=True):
            at = np.flatnonzero(hits)
            if not len(at):
                continue
            right = counted[:, at].cumsum(1)
            all_so_far = (sums if alike else (counted * ~ignored).cumsum(1))[:, at]
            precision = np.divide(right, all_so_far, out=np.zeros_like(right), where=all_so_far > 0.0)
            # the greatest precision at this recall or a greater one
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            recall = np.divide(right, boxes[:, None], out=np.zeros_like(right), where=boxes[:, None] > 0.0)
            read = np.searchsorted(_RECALLS, recall.ravel(), side="right").reshape(recall.shape)
            found += (precision * np.diff(read, axis=1, prepend=0)).sum(1) / len(_RECALLS)
        return np.where(boxes > 0.0, found / len(self.hits), np.nan)


def _prepared(records: Sequence[Detected]) -> Weighing:
    """What gives the mAP of sets in which images have weights."""
    image = np.repeat(np.arange(len(records)), [len(record.labels) for record in records])
    labels, scores = (np.concatenate([getattr(record, key) for record in records]) for key in ("labels", "scores"))
    hits, ignored = (np.concatenate([getattr(record, key) for record in records], axis=1) for key in ("hits", "ignored"))
    there = np.concatenate([record.there for record in records])
    homes = np.repeat(np.arange(len(records)), [len(record.there) for record in records])
    listed = []
    for label in np.unique(there):
        at = np.flatnonzero(labels == label)
        at = at[np.argsort(-scores[at], kind="stable")]
        boxes = np.bincount(homes[there == label], minlength=len(records)).astype(np.float64)
        touched = np.union1d(np.flatnonzero(boxes), image[at])
        listed.append(_Label(image[at], hits[:, at], ignored[:, at], boxes, touched))

    def weigh(weights: np.ndarray) -> np.ndarray:
        sums, labels_there = np.zeros(len(weights)), np.zeros(len(weights))
        for label in listed:
            found = label.precision(weights)
            labels_there += ~np.isnan(found)
            sums += np.nan_to_num(found)
        return np.asarray(np.divide(sums, labels_there, out=np.full(len(weights), np.nan), where=labels_there > 0.0))

    return weigh
