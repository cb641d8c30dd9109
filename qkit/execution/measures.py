"""What is measured of a batch's outputs: a figure for every sample, by formula or by torchmetrics.

Every function takes outputs and what they are measured against, targets or the float lane's outputs, and gives float64 (N,).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.errors import DataError, QkitError
from qkit.execution.loading import targets_tensor
from qkit.graph.structures import flatten, float_tensors, path_text
from qkit.vision import load_torchvision

#: The greatest peak signal to noise ratio that is told apart, in dB; equal images have no finite one.
MOST_PSNR = 100.0
#: A position without a class in maps of labels, as torch's losses have it.
IGNORED = 255


def class_scores(outputs: Any) -> Tensor:
    """Class scores, (N, C, …): the only output, or what is called logits among several.

    Raises
    ------
    QkitError
        If there are none, or one channel only, of which an argmax says nothing.
    DataError
        If they are not finite.
    """
    if not isinstance(outputs, Tensor):
        named = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
        tensors = float_tensors(outputs)
        outputs = named if isinstance(named, Tensor) else tensors[0] if len(tensors) == 1 else outputs
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or outputs.shape[1] < 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise QkitError(
            f"the model's output is {shape}, not class scores of shape (samples, classes, …) with two classes at least: name "
            "another metric, such as 'closeness', or pass a function (outputs, targets) -> scores per sample."
        )
    if bool(outputs.isnan().any()):
        bad = int(outputs.flatten(1).isnan().any(1).sum())
        raise DataError(
            f"the class scores of {bad} of {len(outputs)} samples are NaN, which no class is: study.diagnose() says where they "
            "arise, in the weights, the inputs, or a division."
        )
    return outputs


def labels_of(targets: Any, scores: Tensor) -> Tensor:
    """Class indices that fit class scores, int64, (N,) or (N, …); -1 and `IGNORED` stand for none in maps.

    Raises
    ------
    DataError
        If they have another shape, are no integers, or lie outside the classes.
    """
    if scores.ndim == 2:
        labels = targets_tensor(targets, len(scores)).to(scores.device)
    else:
        labels = torch.as_tensor(targets).to(scores.device)
        wanted = (len(scores), *scores.shape[2:])
        if labels.shape != wanted:
            raise DataError(
                f"class scores of shape {tuple(scores.shape)} need class indices of shape {wanted}, not targets of shape "
                f"{tuple(labels.shape)}: give the targets that shape, or name another metric."
            )
        labels = labels.long()
    classes = scores.shape[1]
    outside = (labels < 0) | (labels >= classes)
    if scores.ndim > 2:
        outside &= (labels != IGNORED) & (labels != -1)
    if bool(outside.any()):
        wrong = labels[outside]
        raise DataError(
            f"{int(outside.sum())} labels lie outside the model's {classes} classes, which are 0 to {classes - 1}: "
            f"{int(wrong.min())} to {int(wrong.max())} were found. Is the label map that of this model, and does it count from 0?"
        )
    return labels


def top1(outputs: Any, targets: Any) -> Tensor:
    """Per sample 1 where the greatest class is the target, else 0; for dense outputs (N, C, …) the share of positions."""
    scores = class_scores(outputs)
    labels = labels_of(targets, scores)
    hit = (scores.argmax(1) == labels).double()
    if hit.ndim == 1:
        return hit
    counted = ((labels >= 0) & (labels < scores.shape[1])).double().flatten(1)
    return (hit.flatten(1) * counted).sum(1) / counted.sum(1).clamp_min(1.0)


def top5(outputs: Any, targets: Any) -> Tensor:
    """Per sample 1 where the target is among the five greatest classes, else 0."""
    scores = class_scores(outputs)
    labels = labels_of(targets, scores)
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(1).double()


def agreement(outputs: Any, reference: Any) -> Tensor:
    """Per sample 1 where the greatest class is the float lane's, else 0; for dense outputs the share of positions."""
    same = class_scores(outputs).argmax(1) == class_scores(reference).argmax(1)
    return same.double().flatten(1).mean(1) if same.ndim > 1 else same.double()


def margins(scores: Tensor, right: Tensor, hits: Tensor, among: int = 1) -> Tensor:
    """The right class's score less the greatest other one (the `among`-th greatest), float64 (N,); its sign is that of the
    hit.
    """
    scores = scores.double()
    own = scores.gather(1, right[:, None])[:, 0]
    others = scores.scatter(1, right[:, None], -torch.inf)
    rival = others.topk(min(among, scores.shape[1] - 1), dim=1).values[:, -1]
    found = own - rival
    # on a grid scores are often equal, and then the order of the classes decides
    least = torch.finfo(torch.float64).tiny
    return torch.where(hits > 0.0, found.clamp_min(least), found.clamp_max(-least))


def beliefs(scores: Tensor) -> Tensor:
    """What a network believes in its classes, float64 (N, C): the scores themselves where they are probabilities, else
    softmax.
    """
    scores = scores.double()
    sums = scores.sum(1)
    already = bool((scores >= 0.0).all()) and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-3))
    return scores if already else scores.softmax(1)


def cross_entropy(outputs: Any, targets: Any) -> Tensor:
    """Cross-entropy in nats; of dense outputs the mean over positions."""
    scores = class_scores(outputs).double()
    labels = labels_of(targets, scores)
    none = (labels < 0) | (labels >= scores.shape[1])
    found = F.cross_entropy(scores, labels.masked_fill(none, -1), reduction="none", ignore_index=-1)
    return found if found.ndim == 1 else found.flatten(1).sum(1) / (~none).flatten(1).sum(1).clamp_min(1)


def mean_iou(outputs: Any, targets: Any) -> Tensor:
    """Intersection over union of the predicted and the true map, the mean over the classes of either, by torchmetrics."""
    scores = class_scores(outputs)
    labels = labels_of(targets, scores)
    classes = scores.shape[1]
    found = scores.argmax(1)
    none = (labels < 0) | (labels >= classes)
    # positions without a class are a class of their own in both maps, which is left out again
    found, labels = found.masked_fill(none, classes), labels.masked_fill(none, classes)
    by_class = _torchmetrics("segmentation").mean_iou(
        found, labels, num_classes=classes + 1, include_background=True, per_class=True, input_format="index"
    )[:, :classes]
    there = torch.stack([(found == c).flatten(1).any(1) | (labels == c).flatten(1).any(1) for c in range(classes)], 1)
    return torch.as_tensor((by_class.double() * there).sum(1) / there.sum(1).clamp_min(1))


def psnr(outputs: Any, targets: Any) -> Tensor:
    """Peak signal to noise ratio in dB, by torchmetrics; the peak is 255 where the targets exceed 1.5, else 1."""
    first, second = _alike(outputs, targets)
    peak = 255.0 if float(second.max()) > 1.5 else 1.0
    dims = tuple(range(1, second.ndim))
    found = _torchmetrics("image").peak_signal_noise_ratio(first, second, data_range=peak, reduction="none", dim=dims)
    return torch.as_tensor(found).double().clamp_max(MOST_PSNR)


def ssim(outputs: Any, targets: Any) -> Tensor:
    """Structural similarity, by torchmetrics (Wang et al. 2004); the range is 255 where the targets exceed 1.5, else 1."""
    first, second = _alike(outputs, targets)
    if first.ndim not in (4, 5):
        raise DataError(
            f"ssim compares images of shape (N, C, H, W), and the output is {tuple(first.shape)}: name another metric, such as "
            "'absolute-error' or 'closeness'."
        )
    peak = 255.0 if float(second.max()) > 1.5 else 1.0
    found = _torchmetrics("image").structural_similarity_index_measure(first, second, data_range=peak, reduction="none")
    return torch.as_tensor(found).double().reshape(-1)


def absolute_error(outputs: Any, targets: Any) -> Tensor:
    """Mean absolute error, in the unit of the outputs."""
    first, second = _alike(outputs, targets)
    return (first - second).abs().flatten(1).mean(1).double()


def relative_error(outputs: Any, targets: Any) -> Tensor:
    """Mean of ``|output - target| / |target|`` over the elements whose target is not 0."""
    first, second = _alike(outputs, targets)
    counted = (second != 0).flatten(1)
    apart = ((first - second).abs() / second.abs().clamp_min(1e-30)).flatten(1).where(counted, 0.0)
    return (apart.sum(1) / counted.sum(1).clamp_min(1)).double()


def cosine(outputs: Any, targets: Any) -> Tensor:
    """Cosine of the angle between the flattened outputs and what they are measured against."""
    first, second = _alike(outputs, targets)
    return F.cosine_similarity(first.flatten(1).double(), second.flatten(1).double(), dim=1)


def closeness(outputs: Any, reference: Any) -> Tensor:
    """One less the squared error over the variance of the float lane's outputs, at least 0, the least of all outputs.

    The variance is that over the elements of the batch around their mean (an output that is nearly constant is not close because
    its constant is large). 1 is equal; 0.99, an error of a tenth of the outputs' own spread, is 20 dB.
    """
    found = [1.0 - ratio for ratio in noise_ratios(outputs, reference)]
    return torch.stack(found).amin(0).clamp_min(0.0)


def noise_ratios(outputs: Any, reference: Any) -> list[Tensor]:
    """By output, every sample's mean squared error over the variance of the float lane's outputs, float64 (N,)."""
    pairs = list(zip(float_tensors(outputs), float_tensors(reference), strict=True))
    if not pairs:
        raise QkitError("the model's outputs are no floating-point tensors: pass metric= a function.")
    found = []
    for mine, reference_output in pairs:
        exact = reference_output.double()
        spread = exact.var(correction=0) if exact.numel() > 1 else exact.square().mean()
        noise = (mine.double() - exact).square().flatten(1).mean(1) if exact.ndim > 1 else (mine.double() - exact).square()
        found.append(noise.nan_to_num(torch.inf) / spread.clamp_min(1e-30))
    return found


def output_names(outputs: Any) -> tuple[str, ...]:
    """Names of the floating-point outputs, as `Metric.of` takes them where they are not nested: ``boxes``, ``1``."""
    leaves = [(path, leaf) for path, leaf in flatten(outputs)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return tuple(("output" if not path else str(path[0])) if len(path) < 2 else path_text(path) for path, _ in leaves)


def characters_right(outputs: Any, targets: Any) -> Tensor:
    """One less the edit distance of the decoded to the true sequence over the latter's length, at least 0, by torchmetrics.

    Outputs are class scores of CTC, (N, T, C) or (N, C, T), with the blank in class 0, decoded greedily; targets class indices
    (N, L), of which 0 and below are padding. Which axis is the classes' is told by the greatest label; the later one if both
    could be.
    """
    scores = float_tensors(outputs)[0]
    try:
        labels = torch.as_tensor(targets)
    except (TypeError, ValueError) as error:
        raise DataError(
            "the edit distance of CTC takes class indices of shape (N, L), not texts or rows of several lengths: map characters "
            "to their classes, from 1 on, and pad shorter rows with 0."
        ) from error
    if scores.ndim != 3 or labels.ndim != 2 or len(labels) != len(scores):
        raise DataError(
            f"the edit distance of CTC takes scores of shape (N, T, C) and labels of shape (N, L), not {tuple(scores.shape)} and "
            f"{tuple(labels.shape)}."
        )
    if int(labels.max()) >= scores.shape[2]:
        scores = scores.transpose(1, 2)
    if int(labels.max()) >= scores.shape[2]:
        raise DataError(
            f"the labels go up to {int(labels.max())}, and neither axis of the scores {tuple(scores.shape)} has so many classes: "
            "is the alphabet that of this model, with the blank in class 0?"
        )
    best = scores.argmax(2)
    distance = _torchmetrics("text").edit_distance
    found = []
    for row, label in zip(best.tolist(), labels.tolist(), strict=True):
        said = [c for i, c in enumerate(row) if c != 0 and (i == 0 or row[i - 1] != c)]
        truth = [c for c in label if c > 0]
        # characters of their own for the classes: torchmetrics compares strings
        first, second = ("".join(chr(0x4E00 + c) for c in text) for text in (said, truth))
        apart = float(distance([first], [second], reduction="none")[0]) if first or second else 0.0
        found.append(max(1.0 - apart / max(len(truth), 1), 0.0))
    return torch.tensor(found, dtype=torch.float64)


def _alike(outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
    tensors = float_tensors(outputs)
    others = [targets] if isinstance(targets, Tensor) else float_tensors(targets)
    if len(tensors) != 1 or len(others) != 1 or tensors[0].numel() != others[0].numel() or len(tensors[0]) != len(others[0]):
        shapes = [[tuple(t.shape) for t in group] for group in (tensors, others)]
        raise DataError(
            f"outputs of {shapes[0]} cannot be measured against {shapes[1]}: name one output by Metric(output=…), and give "
            "targets "
            "of its shape."
        )
    first = tensors[0]
    return first, others[0].to(first.device, first.dtype).reshape(first.shape)


def _torchmetrics(room: str) -> Any:
    """A room of torchmetrics' functions; imported where it is needed, since that takes seconds."""
    from importlib import import_module

    load_torchvision()  # which torchmetrics imports
    return import_module(f"torchmetrics.functional.{room}")
