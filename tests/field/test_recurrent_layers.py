"""A CNN in front of a recurrent layer: the study is made, what runs in float is said and counted, and the CNN part is judged."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import qkit
from qkit.diagnosis.verdict import judge
from qkit.execution.scores import Scores
from qkit.graph import build
from qkit.graph.share import Share


class Reader(nn.Module):
    """Reads digits column by column."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d((2, 1)))
        self.rnn = kind(32, 16, num_layers=2, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(8 * 16, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).permute(0, 3, 1, 2)
        x = torch.reshape(x, (x.shape[0], x.shape[1], -1))
        x, _ = self.rnn(x)
        return self.fc2(torch.relu(self.fc1(torch.flatten(x, 1))))


@pytest.fixture(scope="module", params=[nn.LSTM, nn.GRU], ids=["lstm", "gru"])
def study(request: pytest.FixtureRequest) -> qkit.Study:
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    model = Reader(request.param)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(5):
        for i in range(0, 1200, 100):
            optimizer.zero_grad()
            F.cross_entropy(model(x[i : i + 100]), y[i : i + 100]).backward()
            optimizer.step()
    with torch.no_grad():  # an outlier behind the recurrence
        model.fc1.weight[3, 5] = 400.0 * model.fc1.weight.abs().max()
        model.fc1.bias[3] = -3e2
    fit = [(x[i : i + 100], y[i : i + 100]) for i in range(0, 500, 100)]
    test = [(x[i : i + 100], y[i : i + 100]) for i in range(1200, 1700, 100)]
    made = qkit.Study(model.eval(), fit, test, scheme="int8-per-tensor")
    made.calibrate("minmax", progress=False)
    return made


def test_what_runs_in_float_is_counted_and_said(study: qkit.Study) -> None:
    assert list(study.graph.notes) == ["rnn"]
    rnn, op = study.model.rnn, study.graph.operation("conv.0")
    macs = 8 * sum(p.numel() for n, p in rnn.named_parameters() if "weight" in n)  # eight columns
    whole = op.macs + 8 * 16 * 32 + 32 * 10 + macs
    # fc1 reads what the recurrent layer gives, which is on no grid
    assert study.graph.share.macs == pytest.approx((op.macs + 32 * 10) / whole)
    assert study.graph.share.elements < 1.0
    assert any("rnn" in remark for remark in study.remarks)


def test_the_diagnosis_finds_the_outlier_and_names_the_float_layer(study: qkit.Study) -> None:
    found = study.diagnose(progress=False)
    assert found.causes[0].layer == "fc1"
    assert any(c.kind == "unquantized-layer" and c.layer == "rnn" for c in found.findings)
    assert f"{100 * (1 - study.share.macs):.1f} % of the multiply-accumulates" in found.verdict.reason


def test_a_verdict_is_not_given_where_nothing_is_on_integers(study: qkit.Study) -> None:
    scores = study.evaluate(progress=False)
    known = judge(Scores("top1", scores.lanes), narrow="int8", share=Share(1.0, 1.0))
    assert "multiply-accumulates" not in known.reason
    refused = judge(Scores("top1", scores.lanes), narrow="int8", share=Share(0.0, 0.3))
    assert refused.name == "inconclusive"
    assert refused.samples_needed is None

    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, x[:1].mean(0, keepdim=True).expand(4, -1, -1, -1)[..., :3, :3]).mean((2, 3))

    assert build(Random(), torch.randn(2, 3, 8, 8)).share.macs == 0.0
