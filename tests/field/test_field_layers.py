"""What people reported about single layers: gates, PReLU, padding, shared weights, joins behind a permutation, states, masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkit


def calibrated(model: nn.Module, data: list[object], **options: object) -> qkit.Study:
    study = qkit.Study(model.eval(), data, data, **options)  # type: ignore[arg-type]
    study.calibrate("minmax", progress=False)
    return study


def codes(study: qkit.Study, tap: str) -> Tensor:
    return study.capture(lanes=("int8",), batches=1)[tap].int8.codes.to(torch.int64)


def mostly(got: Tensor, want: Tensor, share: float = 0.99) -> None:
    """Equal but for rounding ties, which are a step off: torch's float32 convolutions are no int64 sums."""
    assert int((got - want).abs().max()) <= 1
    assert float((got == want).double().mean()) > share


class Gated(nn.Module):
    """A squeeze-and-excitation block around a tensor of both signs: neither factor's zero point is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(x * gate)


def test_the_product_of_a_gate_is_that_of_the_integers() -> None:
    torch.manual_seed(0)
    study = calibrated(Gated(), [torch.randn(8, 3, 10, 10) + 0.5])
    (product,) = (op for op in study.graph.operations if op.kind == "mul")
    left, right = (study.graph.operations[i] for i in product.inputs)
    plan = study.plan
    a, b, out = (plan[op.name].params for op in (left, right, product))
    assert int(a.zero_point) not in (-128, 0)
    assert int(b.zero_point) != 0
    qa, qb = codes(study, left.name), codes(study, right.name)
    exact = (qa - int(a.zero_point)) * (qb - int(b.zero_point))
    scale = float(a.scale) * float(b.scale) / float(out.scale)
    want = ((exact.double() * scale).round() + int(out.zero_point)).clamp(-128, 127)
    mostly(codes(study, product.name), want)
    assert qkit.lint(Gated().eval(), torch.randn(1, 3, 10, 10)).of("squeeze-and-excitation")


class Upscaler(nn.Module):
    """Twice the size with PReLU of a slope per channel and a skip connection around everything."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Conv2d(1, 12, 3, padding=1), nn.PReLU(12)
        self.last, self.shuffle = nn.Conv2d(12, 4, 3, padding=1), nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.last(self.act(self.first(x)))) + F.interpolate(x, scale_factor=2, mode="nearest")


@pytest.fixture(scope="module")
def upscaler() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    big = F.avg_pool2d(torch.rand(48, 1, 36, 36), 5, 1)
    small = F.avg_pool2d(big, 2)
    model = Upscaler()
    with torch.no_grad():
        model.act.weight.copy_(torch.linspace(-0.2, 0.6, 12))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(12):
        optimizer.zero_grad()
        F.mse_loss(model(small), big).backward()
        optimizer.step()
    return model.eval(), list(zip(small.split(16), big.split(16), strict=True))


def psnr(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> float:
    with torch.no_grad():
        errors = torch.cat([(model(x) - y).double().square().flatten(1).mean(1) for x, y in data])
    return float((-10 * errors.log10()).mean())


def test_super_resolution_with_prelu(upscaler: tuple[nn.Module, list[tuple[Tensor, Tensor]]]) -> None:
    model, data = upscaler
    study = calibrated(model, data, metric="psnr")  # type: ignore[arg-type]
    scores = study.evaluate(progress=False)
    assert scores["float"].value == pytest.approx(psnr(model, data), abs=1e-3)
    assert not study.graph.notes, "PReLU runs on integers"
    captured = study.capture(batches=1)
    source, got, grid = captured["first"].int8.values, captured["act"].int8.values, study.plan["act"].params
    with torch.no_grad():
        want = qkit.fake_quantize(model.act(source), grid)
    assert float((got - want).abs().max()) <= 1.01 * float(grid.scale)
    assert float((got == want).double().mean()) > 0.99
    found = study.diagnose(check_export=False, progress=False)
    assert found.verdict.name == "no-degradation"
    assert found.verdict.units.unit == "dB"
    assert not found.causes


class Bordered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.bare = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.conv(x), self.pool(x), self.bare(x)


def test_borders_are_padded_with_the_value_0_not_the_code_0() -> None:
    """An input from -1 to 7, whose zero point is far from 0: the edges are where engines went wrong."""
    torch.manual_seed(0)
    model, x = Bordered(), 8.0 * torch.rand(4, 2, 6, 6) - 1.0
    study = calibrated(model, [x])
    grid, weight = study.plan["input"].params, study.plan["conv.weight"].params
    assert abs(int(grid.zero_point)) > 50
    q = codes(study, "input") - int(grid.zero_point)
    w = (model.conv.weight.double() / weight.scale.double().reshape(-1, 1, 1, 1)).round().clamp(-127, 127)
    step = float(grid.scale) * weight.scale.double()
    bias = (model.conv.bias.double() / step).round()
    total = F.conv2d(F.pad(q.double(), (1, 1, 1, 1)), w) + bias.reshape(1, -1, 1, 1)
    out = study.plan["conv"].params
    want = ((total * step.reshape(1, -1, 1, 1) / float(out.scale)).round() + int(out.zero_point)).clamp(-128, 127)
    mostly(codes(study, "conv"), want.detach())
    ones = torch.ones_like(q, dtype=torch.float64)
    sums, counts = (9 * F.avg_pool2d(t.double(), 3, 1, 1) for t in (q, ones))
    for name, mean in (("pool", sums / 9), ("bare", sums / counts)):
        p = study.plan[name].params
        want = ((mean * float(grid.scale) / float(p.scale)).round() + int(p.zero_point)).clamp(-128, 127)
        mostly(codes(study, name), want)


@pytest.mark.parametrize(("padding", "kernel"), [("same", 3), ("same", 4), ("valid", 3), ((2, 1), 3)])
def test_padding_given_in_words_or_unlike_is_computed(padding: object, kernel: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, kernel, padding=padding), nn.ReLU(), nn.Conv2d(5, 2, 1)).eval()  # type: ignore[arg-type]
    x = torch.randn(4, 3, 10, 10)
    study = calibrated(model, [x])
    assert not study.graph.notes
    pair = study.capture(batches=1)["0"]
    with torch.no_grad():
        want = model[:2](x)
    torch.testing.assert_close(pair.float.values, want, rtol=1e-5, atol=1e-6)
    assert float((pair.int8.values - want).abs().max()) < 0.05 * float(want.max())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(10.0 * F.relu(self.conv(x))).mean((2, 3)))


def test_a_layer_called_twice_has_one_weight_and_a_range_for_each_call() -> None:
    torch.manual_seed(0)
    model = Twice()
    study = calibrated(model, [torch.randn(8, 4, 6, 6)])
    assert [w for w in study.graph.weights if w.startswith("conv")] == ["conv.weight"]
    taps = [op.name for op in study.graph.operations if op.kind == "conv"]
    assert len(taps) == 2
    first, second = (study.plan[t].params for t in taps)
    assert float(first.scale) != float(second.scale)
    assert float(second.hi) - float(second.lo) > 2 * float(first.hi)


class Turned(nn.Module):
    """ReLU behind a permutation, whose result is added to something of both signs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv1d(6, 6, 3, padding=1), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x.permute(0, 2, 1))).permute(0, 2, 1)
        return x + self.linear(x)


def test_a_relu_behind_a_permutation_keeps_its_own_one_sided_range() -> None:
    torch.manual_seed(0)
    study = calibrated(Turned(), [torch.randn(8, 12, 6)])
    relu = study.plan["conv"].params
    assert float(relu.lo) == 0.0
    assert int(relu.zero_point) == int(relu.qmin)
    (add,) = (op for op in study.graph.operations if op.kind == "add")
    assert float(study.plan[add.name].params.lo) < 0.0
    assert not codes(study, "conv").lt(int(relu.qmin)).any()


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return F.relu(self.b(x) + self.c(x))


def test_an_addition_and_its_relu_are_one_tensor_of_the_engine() -> None:
    torch.manual_seed(0)
    study = calibrated(Sum(), [torch.randn(8, 3, 6, 6)])
    assert [t for t in study.graph.taps if t != "output"] == ["input", "a", "b", "c", ":add"]
    assert float(study.plan[":add"].params.lo) == 0.0
    assert float(study.plan["b"].params.lo) < 0.0


@pytest.mark.parametrize("act", [nn.Hardswish, nn.SiLU, nn.GELU, nn.Hardsigmoid, nn.LeakyReLU])
def test_activations_are_one_step_with_a_range_of_their_own(act: type[nn.Module]) -> None:
    """x * sigmoid(x) with grids for its parts rounds twice; here the only rounding is that of its output."""
    torch.manual_seed(0)
    study = calibrated(nn.Sequential(nn.Conv2d(3, 6, 3), act(), nn.Conv2d(6, 2, 1)), [4.0 * torch.randn(8, 3, 8, 8)])
    taps = [t for t in study.graph.taps if t != "output"]
    assert taps == ["input", "0", "1", "2"]
    captured, grid = study.capture(batches=1), study.plan["1"].params
    want = qkit.fake_quantize(act()(captured["0"].int8.values), grid)
    assert float((captured["1"].int8.values - want).abs().max()) <= 1.01 * float(grid.scale)
    assert float((captured["1"].int8.values == want).double().mean()) > 0.98


def test_images_in_one_batch_have_the_codes_that_each_has_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 10, 10)
    study = calibrated(Gated(), [x])
    together = study.capture(lanes=("int8",), batches=1)
    for i in (0, 3, 7):
        alone = study.with_data(evaluation=[x[i : i + 1]]).capture(lanes=("int8",), batches=1)
        for tap in ("input", "conv", "head"):
            assert torch.equal(together[tap].int8.codes[i], alone[tap].int8.codes[0])


class Streaming(nn.Module):
    """A frame and the state that the last call gave: new frame out, new state out."""

    def __init__(self) -> None:
        super().__init__()
        self.frame, self.state, self.out = nn.Conv1d(4, 6, 1), nn.Conv1d(6, 6, 1), nn.Conv1d(6, 2, 1)

    def forward(self, frame: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        new = torch.tanh(self.frame(frame) + self.state(state))
        return self.out(new), new


def streaming_data(model: nn.Module, steps: int = 24) -> list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    draw = torch.Generator().manual_seed(2)
    state, data = torch.zeros(16, 6, 1), []
    for _ in range(steps):
        frame = 5.0 * torch.randn(16, 4, 1, generator=draw)
        with torch.no_grad():
            out, new = model(frame, state)
        data.append(((frame, state), (out, new)))
        state = new
    return data


def test_a_streaming_network_has_a_range_for_frame_and_state() -> None:
    torch.manual_seed(0)
    model = Streaming().eval()
    data = streaming_data(model)
    study = qkit.Study(model, data, data)
    plan = study.calibrate("minmax", progress=False)
    inputs = [op.name for op in study.graph.operations if op.kind == "input"]
    assert len(inputs) == 2
    frames, states = (plan[name].params for name in inputs)
    assert float(frames.hi) > 10.0
    assert 0.9 < float(states.hi) <= 1.0 + float(states.scale)
    scores = study.evaluate(progress=False)
    assert scores.loss("int8").value < 0.01
    table = scores.by_output("int8")
    assert (table["dB"] > 30.0).all()
    assert len(table) == 2
    assert study.diagnose(check_export=False, progress=False).verdict.name == "no-degradation"


class Masked(nn.Module):
    """Scores of attention with -1e9 added where nobody shall look."""

    def __init__(self, mask: float) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("mask", torch.triu(torch.full((6, 6), mask), 1))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2)
        return torch.softmax(scores + self.mask, -1)


def test_a_mask_of_a_billion_leaves_one_step_for_all_scores() -> None:
    torch.manual_seed(0)
    x = 3.0 * torch.randn(32, 6, 8)
    study = calibrated(Masked(-1e9), [x])
    assert float(study.plan[":add"].params.scale) > 1e6
    even = torch.tril(torch.ones(6, 6)) / torch.arange(1.0, 7.0)[:, None]
    got = study.capture(batches=1)[":softmax"].int8.values
    assert float((got - even).abs().max()) <= 0.51 / 255, "whoever may be looked at gets the same"
    found = study.diagnose(check_export=False, progress=False)
    (top,) = found.causes  # the mask itself, at 16 bits, would gain a hundred-thousandth
    assert (top.kind, top.tensor, top.remedy.kind) == ("activation-outlier", ":add", "clip-activation")
    assert study.apply(top.remedy).evaluate(progress=False).loss("int8").value < 0.01
    mild = calibrated(Masked(-30.0), [x]).diagnose(check_export=False, progress=False)
    assert mild.verdict.name == "no-degradation"
