"""What training on the grids recovers, on the bundled network that quantization breaks."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader

import qkit
from qkit import zoo
from qkit.qat import fit, wrap
from qkit.qat.training import top1
from qkit.zoo.digits import digits


@pytest.mark.slow
def test_the_hostile_network_comes_back() -> None:
    """27.5 % under one scale per weight, 98.8 in float. Seeds and machines gave 96.1 to 98.4 (float training on by the same recipe
    96.7: these 800 images do not give more), so no more is asked for than that it comes back."""
    case = zoo.load("mobilenet_v2_hostile")
    study = qkit.Study(case.model, case.calibration, case.evaluation, metric="top1", scheme="int8-per-tensor")
    module = wrap(study, total_epochs=15, diagnosis=study.diagnose(budget=1, progress=False))
    assert "quantization" in module.need
    assert top1(module.eval(), case.evaluation) < 0.35
    loader = DataLoader(digits().train, batch_size=32, shuffle=True, drop_last=True)
    result = fit(module, loader, lr=0.02, weight_decay=2e-3, evaluate=case.evaluation, progress=False)
    assert result.scores[-1] > 0.94
    trained = module.study()
    score = trained.evaluate({"trained": trained.plan}, progress=False)["trained"].value
    assert abs(score - result.scores[-1]) <= 2 / 741
