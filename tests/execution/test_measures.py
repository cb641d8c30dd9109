"""Named metrics against scikit-learn and formulas of their own, and which one the outputs ask for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import jaccard_score, log_loss

from qkit import DataError, Metric, QkitError
from qkit.execution import measures
from qkit.execution.metrics import NAMED, check_expected, choose, metric_of, score_batch, tolerance_of


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(classes: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(5))


def test_intersection_over_union_against_scikit_learn() -> None:
    scores, truth = random(4, 5, 8, 8), labels(5, 4, 8, 8)
    truth[0, :3] = measures.IGNORED
    found = measures.mean_iou(scores, truth)
    for i in range(4):
        there = truth[i] != measures.IGNORED
        expected = jaccard_score(truth[i][there], scores[i].argmax(0)[there], average="macro")
        assert float(found[i]) == pytest.approx(expected)


def test_cross_entropy_against_scikit_learn_and_without_ignored_positions() -> None:
    scores, truth = random(6, 4), labels(4, 6)
    expected = log_loss(truth, scores.double().softmax(1), labels=range(4))
    assert float(measures.cross_entropy(scores, truth).mean()) == pytest.approx(expected)
    dense, marks = random(2, 4, 3, 3), labels(4, 2, 3, 3)
    marks[:, 0] = measures.IGNORED
    expected = F.cross_entropy(dense[:, :, 1:].double(), marks[:, 1:], reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(measures.cross_entropy(dense, marks), expected)


def test_peak_signal_to_noise_ratio_by_its_formula() -> None:
    target = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    output = (target + 0.05 * random(3, 3, 16, 16)).clamp(0, 1)
    noise = (output - target).square().flatten(1).mean(1)
    torch.testing.assert_close(measures.psnr(output, target), -10 * noise.log10().double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(measures.psnr(255 * output, 255 * target), -10 * noise.log10().double(), rtol=1e-4, atol=0)
    assert measures.psnr(target, target).tolist() == [measures.MOST_PSNR] * 3


def test_structural_similarity_falls_with_noise() -> None:
    target = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    found = [float(measures.ssim(target + noise * random(1, 1, 32, 32), target)) for noise in (0.0, 0.02, 0.2)]
    assert found[0] == pytest.approx(1.0)
    assert found[0] > found[1] > found[2]


def test_errors_and_cosine_by_their_formulas() -> None:
    output, target = random(5, 7), random(5, 7, seed=1)
    torch.testing.assert_close(measures.absolute_error(output, target), (output - target).abs().mean(1).double())
    torch.testing.assert_close(measures.relative_error(output, target), ((output - target).abs() / target.abs()).mean(1).double())
    expected = (output * target).sum(1) / (output.norm(dim=1) * target.norm(dim=1))
    torch.testing.assert_close(measures.cosine(output, target), expected.double(), rtol=1e-5, atol=1e-6)


def test_characters_of_a_text_that_is_read_by_ctc() -> None:
    """Repeated classes are one, class 0 parts them; an edit of four characters is a quarter."""
    read = [1, 1, 0, 2, 2, 0, 2, 5]
    scores = F.one_hot(torch.tensor([read, read]), 6).float()
    truth = torch.tensor([[1, 2, 2, 5], [1, 2, 3, 5]])
    assert measures.characters_right(scores, truth).tolist() == [1.0, 0.75]


def test_closeness_is_the_variance_that_is_no_error() -> None:
    exact = random(64, 1, 8, 8)
    noisy = exact + 0.1 * random(64, 1, 8, 8, seed=2)
    found = measures.closeness((noisy, exact), (exact, exact))
    assert float(found.mean()) == pytest.approx(0.99, abs=1e-3)
    far = measures.closeness(exact + 100.0 + noisy, exact + 100.0)
    assert float(far.max()) < 0.9, "a large constant makes no output close"
    assert measures.closeness(torch.full_like(exact, torch.nan), exact).tolist() == [0.0] * 64


@pytest.mark.parametrize(
    ("outputs", "targets", "name"),
    [
        (random(4, 10), torch.arange(4), "top1"),
        (random(4, 10), torch.arange(4, dtype=torch.int32), "top1"),
        (random(4, 10), None, "agreement"),
        (random(4, 5, 8, 8), torch.zeros(4, 8, 8, dtype=torch.long), "top1"),
        (random(4, 1, 8, 8), None, "closeness"),
        (random(4, 3, 8, 8), None, "closeness"),
        (random(4, 3, 8, 8), random(4, 3, 8, 8), "closeness"),
        ((random(4, 3), random(4, 2)), None, "closeness"),
        ({"boxes": random(4, 4), "scores": random(4, 3)}, torch.arange(4), "closeness"),
        (F.normalize(random(4, 16), dim=1), None, "closeness"),
        (random(4, 1), torch.rand(4), "closeness"),
    ],
)
def test_the_outputs_choose_their_metric(outputs: object, targets: object, name: str) -> None:
    chosen, why = choose(outputs, targets)
    assert chosen is NAMED[name]
    assert bool(why) == (name != "top1")


def test_labels_outside_the_classes_are_no_score() -> None:
    with pytest.raises(DataError, match=r"10 classes.*0 to 9.*10"):
        choose(random(4, 10), torch.tensor([1, 10, 3, 4]))
    with pytest.raises(DataError, match=r"1 labels.*-1 to -1"):
        measures.top1(random(2, 10), torch.tensor([1, -1]))


def test_one_channel_is_no_class() -> None:
    for measure in (measures.top1, measures.agreement):
        with pytest.raises(QkitError, match="closeness"):
            measure(random(4, 1, 8, 8), random(4, 1, 8, 8))


def test_margins_have_the_sign_of_the_hit_also_where_scores_are_equal() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
    found = score_batch(NAMED["top1"], scores, torch.tensor([0, 1, 1]), None, 3)
    assert found.values.tolist() == [1.0, 0.0, 1.0]
    assert found.margins is not None
    assert (found.margins > 0).tolist() == [True, False, True]
    assert found.margins[2] == 2.0
    among = score_batch(NAMED["top5"], random(50, 12), labels(12, 50), None, 50)
    assert among.margins is not None
    assert np.array_equal(among.margins > 0, among.values > 0)


def test_one_output_of_several() -> None:
    outputs = {"depth": random(4, 1, 6, 6), "class": random(4, 3)}
    targets = {"depth": outputs["depth"] + 1.0, "class": torch.zeros(4).long()}
    found = score_batch(NAMED["absolute-error"].of("depth"), outputs, targets, None, 4)
    assert found.values == pytest.approx([-1.0] * 4), "errors are kept with their sign changed: higher is better"
    pair = score_batch(NAMED["top1"].of(1), (outputs["depth"], outputs["class"]), targets["class"], None, 4)
    assert pair.values.tolist() == measures.top1(outputs["class"], targets["class"]).tolist()
    with pytest.raises(DataError, match=r"'boxes'.*'depth', 'class'"):
        score_batch(NAMED["psnr"].of("boxes"), outputs, targets, None, 4)


def test_a_function_of_the_outputs_and_floats_outputs() -> None:
    apart = Metric(
        lambda mine, exact: (mine - exact).abs().amax(1), "greatest error", "mm", "lower", against="float", tolerance=0.5
    )
    exact = random(4, 3)
    found = score_batch(apart, exact + 0.25, torch.zeros(4), exact, 4)
    assert found.values == pytest.approx([-0.25] * 4)
    assert apart.units.score(-0.25) == "0.2500 mm"
    assert tolerance_of(apart, found.values) == 0.5


def test_the_tolerance_follows_from_the_metric() -> None:
    metres = Metric(lambda outputs, targets: outputs, "error", "m", "lower")
    scores = -np.array([2.0, 4.0])
    assert tolerance_of(metres, scores) == pytest.approx(0.03)
    assert tolerance_of(metres, 1000 * scores) == pytest.approx(30.0)
    assert tolerance_of(NAMED["top1"], np.ones(3)) == 0.01
    with pytest.raises(QkitError, match="tolerance"):
        tolerance_of(metres, np.zeros(3))
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(QkitError, match="tolerance"):
            Metric(lambda outputs, targets: outputs, "error", tolerance=wrong)


def test_a_share_above_one_is_a_percentage() -> None:
    with pytest.raises(QkitError, match=r"expected=97.*0\.97"):
        check_expected(NAMED["top1"], 97.0)
    check_expected(NAMED["top1"], 0.97)
    check_expected(NAMED["psnr"], 31.0)


@pytest.mark.parametrize("wrong", ["top3", 5])
def test_what_is_no_metric(wrong: object) -> None:
    with pytest.raises(QkitError, match=str(wrong)):
        metric_of(wrong)  # type: ignore[arg-type]
