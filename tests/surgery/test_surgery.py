"""Lite surgery against the original: exact changes compute the same in float64, all keep shapes and leave the model alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from qkit.errors import DataError, QkitError
from qkit.surgery import RULES, Surgery, lite
from qkit.vision import load_torchvision

FORBIDDEN = (nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.GELU, nn.LeakyReLU)


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


def changed(module: nn.Module, **options: object) -> Surgery:
    return lite(nn.Sequential(module), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", FORBIDDEN)
@pytest.mark.parametrize("inplace", [False, True])
def test_activations_become_relu(kind: type[nn.Module], inplace: bool) -> None:
    module = kind() if kind is nn.GELU else kind(inplace=inplace)
    surgery = changed(module)
    x = torch.linspace(-8, 8, 65)
    assert torch.equal(outputs(surgery.model, x.clone()), F.relu(x))
    assert surgery.model[0].inplace == (inplace and kind is not nn.GELU)  # type: ignore[index,union-attr]
    (change,) = surgery.changes
    assert (change.path, change.after, change.exact) == ("0", "ReLU", False)
    assert surgery.needs_retraining
    assert "1 of 1 changes" in repr(surgery)


def test_the_model_itself_is_replaced_where_it_is_the_operation() -> None:
    surgery = lite(nn.SiLU())
    assert type(surgery.model) is nn.ReLU
    assert surgery.changes[0].path == ""


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_max_pools_are_exact(data: st.DataObject) -> None:
    window = data.draw(st.tuples(st.integers(1, 13), st.integers(5, 13)))
    stride = data.draw(st.one_of(st.none(), st.tuples(st.integers(1, 7), st.integers(1, 7))))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in window)
    pool = nn.MaxPool2d(window, stride, padding, ceil_mode=data.draw(st.booleans()))
    surgery = changed(pool)
    assume(not surgery.unchanged)
    assert pool.ceil_mode or surgery.changes
    assert all(max(m.kernel_size) <= 3 for m in surgery.model.modules() if isinstance(m, nn.MaxPool2d))
    size = [data.draw(st.integers(max(k - 2 * p, 1), 30)) for k, p in zip(window, padding, strict=True)]
    x = torch.randn(1, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(outputs(surgery.model, x), pool(x))
    assert surgery.changes[0].exact
    assert not surgery.needs_retraining


def test_max_pool_of_five_is_two_of_three() -> None:
    surgery = changed(nn.MaxPool2d(5, 1, 2))
    assert [(m.kernel_size, m.stride, m.padding) for m in surgery.model.modules() if isinstance(m, nn.MaxPool2d)] == [
        ((3, 3), 1, (1, 1)),
        ((3, 3), (1, 1), (1, 1)),
    ]


def test_max_pools_that_no_stack_equals_stay_and_are_named() -> None:
    for pool in (nn.MaxPool2d(5, return_indices=True), nn.MaxPool2d(5, 1, 2, dilation=2), nn.MaxPool2d(6, 6, 3, ceil_mode=True)):
        surgery = changed(pool)
        assert not surgery.changes
        assert [(u.path, u.rule) for u in surgery.unchanged] == [("0", "max-pool")]
        assert type(surgery.model[0]) is nn.MaxPool2d  # type: ignore[index]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_average_pools_keep_shapes_and_say_when_they_are_exact(data: st.DataObject) -> None:
    window = data.draw(st.tuples(st.integers(1, 9), st.integers(5, 9)))
    stride = data.draw(st.one_of(st.none(), st.tuples(st.integers(1, 6), st.integers(1, 6))))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in window)
    pool = nn.AvgPool2d(window, stride, padding, count_include_pad=data.draw(st.booleans()))
    size = [data.draw(st.integers(k, 30)) for k in window]
    x = torch.randn(1, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    surgery = changed(pool)
    assert surgery.changes
    assert all(max(m.kernel_size) < 5 for m in surgery.model.modules() if isinstance(m, nn.AvgPool2d))
    y, want = outputs(surgery.model, x), pool(x)
    assert y.shape == want.shape
    if surgery.changes[0].exact:
        torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-12)
    elif y.numel() > 3:
        assert not torch.allclose(y, want, rtol=1e-9)


def test_average_pool_of_blocks_is_exact() -> None:
    assert changed(nn.AvgPool2d(6)).changes[0].exact
    assert changed(nn.AvgPool2d(8, 4)).changes[0].exact
    assert not changed(nn.AvgPool2d(7)).changes[0].exact
    assert not changed(nn.AvgPool2d(3)).changes


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_kernels_are_exact_up_to_thirteen(data: st.DataObject) -> None:
    kernel = data.draw(st.tuples(st.integers(1, 13), st.integers(1, 13)))
    dilation = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = data.draw(st.one_of(st.sampled_from(["same", "valid"]), st.tuples(st.integers(0, 4), st.integers(0, 4))))
    stride = (1, 1) if padding == "same" else data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    groups, bias = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.booleans())
    with torch.random.fork_rng():
        torch.manual_seed(data.draw(st.integers(0, 99)))
        conv = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, bias).double()
        x = torch.randn(2, 4, 28, 27).double()
    surgery = changed(conv)
    with torch.no_grad():
        torch.testing.assert_close(surgery.model(x), conv(x), rtol=1e-10, atol=1e-10)
    for made in surgery.model.modules():
        if isinstance(made, nn.Conv2d):
            assert all(k % 2 for k in made.kernel_size)
            assert max(made.kernel_size) <= 7
    plain = all(k % 2 for k in kernel) and max(kernel) <= 7
    assert len(surgery.changes) == (0 if plain else 1)
    assert all(change.exact for change in surgery.changes)


@pytest.mark.parametrize("kernel", [15, 16, 21, 31, (3, 17)])
def test_still_larger_kernels_keep_shape_and_receptive_field(kernel: int | tuple[int, int]) -> None:
    conv = nn.Conv2d(4, 6, kernel, 2, 7, padding_mode="zeros").double()
    surgery = changed(conv)
    (change,) = surgery.changes
    assert (change.rule, change.exact) == ("large-kernel", False)
    x = torch.randn(1, 4, 40, 41, dtype=torch.float64, requires_grad=True)
    y, want = surgery.model(x), conv(x)
    assert y.shape == want.shape
    for made in surgery.model.modules():
        if isinstance(made, nn.Conv2d):
            nn.init.ones_(made.weight)  # so that all that can be reached is
    at = (0, 0, 8, 8)
    (own,) = torch.autograd.grad(surgery.model(x)[at], x)
    (theirs,) = torch.autograd.grad(want[at], x)
    assert bool(((own != 0) >= (theirs != 0)).all())


def test_kernels_with_other_paddings() -> None:
    x = torch.randn(1, 4, 24, 24).double()
    odd = nn.Conv2d(4, 4, 11, padding=5, padding_mode="reflect").double()
    surgery = changed(odd)
    torch.testing.assert_close(outputs(surgery.model, x), outputs(odd, x), rtol=1e-10, atol=1e-10)
    even = changed(nn.Conv2d(4, 4, 4, padding=2, padding_mode="reflect"))
    assert not even.changes
    assert "reflect" in even.unchanged[0].reason


class Gated(nn.Module):
    """Squeeze-and-excitation as a module of one's own, by other names than torchvision's."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size(0), x.size(1), 0, 0
        gate = self.fc(self.pool(x).view(b, c)).view(b, c, 1, 1)
        return x * gate.expand_as(x)


class Attention(nn.Module):
    """Spatial attention: a product with a sigmoid, but no gate of a pooled tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x))


def test_squeeze_and_excitation_is_known_by_what_it_computes() -> None:
    surgery = lite(nn.Sequential(nn.Conv2d(3, 8, 3), Gated(), Attention()))
    assert [(c.path, c.rule, c.after) for c in surgery.changes] == [("1", "squeeze-excitation", "Identity")]
    kept = lite(nn.Sequential(nn.Conv2d(3, 8, 3), Gated()), skip=["squeeze-excitation"])
    assert not kept.changes
    assert isinstance(kept.model[1], Gated)  # type: ignore[index]


class Functional(nn.Module):
    """Forbidden operations as calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.pool, self.squeeze, self.excite = nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.gate = nn.Sigmoid()
        self.kernel = nn.Parameter(torch.randn(8, 8, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x))
        x = x * x.sigmoid()
        x = x * self.gate(self.excite(F.relu(self.squeeze(self.pool(x)))))
        x = F.gelu(F.max_pool2d(x, 5, 1, 2))
        x = F.conv2d(x, self.kernel, padding=2)
        return torch.sigmoid(F.leaky_relu_(x))


def line_of(text: str) -> int:
    return next(i for i, line in enumerate(Path(__file__).read_text().splitlines(), 1) if text in line)


def test_calls_in_forwards_are_named_with_their_line() -> None:
    surgery = lite(nn.Sequential(Functional(), nn.ReLU6()))
    assert [c.path for c in surgery.changes] == ["1"]
    assert {(u.path, u.rule, u.line) for u in surgery.unchanged} == {
        ("0", "silu", line_of("x = F.silu(self.conv(x))")),
        ("0", "silu", line_of("x = x * x.sigmoid()")),
        ("0", "squeeze-excitation", line_of("x = x * self.gate(")),
        ("0", "gelu", line_of("x = F.gelu(")),
        ("0", "max-pool", line_of("x = F.gelu(")),
        ("0", "even-kernel", line_of("x = F.conv2d(")),
        ("0", "leaky-relu", line_of("F.leaky_relu_(x)")),
    }
    assert {u.file for u in surgery.unchanged} == {__file__}
    assert "test_surgery.py" in repr(surgery)
    only = lite(Functional(), only=["gelu"])
    assert [u.rule for u in only.unchanged] == ["gelu"]


class Branching(nn.Module):
    """Cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.silu = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = F.hardswish(x)
        return self.silu(x)


def test_calls_of_models_that_cannot_be_traced_are_read_from_the_source() -> None:
    surgery = lite(Branching())
    assert [c.path for c in surgery.changes] == ["silu"]
    assert [(u.rule, u.line) for u in surgery.unchanged] == [("hardswish", line_of("x = F.hardswish(x)"))]
    assert surgery.remarks[0].startswith("Branching ")
    assert surgery.remarks[0] in repr(surgery)


class OwnForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_subclasses_with_a_forward_of_their_own_stay() -> None:
    assert not changed(OwnForward(3, 4, 4)).changes


def test_shared_modules_stay_shared() -> None:
    act = nn.ReLU6()
    surgery = lite(nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(3, 3, 1), act), "b": nn.Sequential(act)}))
    assert surgery.model["a"][1] is surgery.model["b"][0]  # type: ignore[index]
    assert len(surgery.changes) == 1


def test_names_of_rules_are_checked() -> None:
    with pytest.raises(QkitError, match=r"^only= .*'relu-6'.*'relu6'"):
        lite(nn.ReLU6(), only=["relu-6"])
    with pytest.raises(QkitError, match=r"^skip= .*'nothing'"):
        lite(nn.ReLU6(), skip="nothing")
    with pytest.raises(QkitError, match=r"torch\.nn\.Module .*\btype\b"):
        lite(nn.ReLU6)  # type: ignore[arg-type]


def test_only_and_skip() -> None:
    model = nn.Sequential(nn.ReLU6(), nn.SiLU())
    assert [c.rule for c in lite(model, only=["silu"]).changes] == ["silu"]
    assert [c.rule for c in lite(model, skip=["silu"]).changes] == ["relu6"]
    assert not lite(model, only=[]).changes
    assert "0 changes" in repr(lite(model, only=[]))


def test_result_in_all_forms() -> None:
    surgery = lite(nn.Sequential(Functional(), nn.ReLU6(), nn.MaxPool2d(5)))
    table = surgery.table()
    assert list(table.index[:2]) == ["1", "2"]
    assert list(table["exact"][:2]) == [False, True]
    assert len(table) == len(surgery.changes) + len(surgery.unchanged)
    data = json.loads(json.dumps(surgery.to_dict()))
    assert data["needs_retraining"] is True
    assert [c["rule"] for c in data["changes"]] == ["relu6", "max-pool"]
    assert "1 of 2 changes" in surgery._repr_html_()
    assert len(lite(nn.ReLU()).table()) == 0
    assert set(RULES) >= {c.rule for c in surgery.changes}


def test_mode_dtype_and_frozen_weights_are_carried_over() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 11), nn.ReLU6(), nn.Conv2d(4, 4, 2)).double()
    model[0].weight.requires_grad_(False)
    made = lite(model).model
    assert made.training
    assert all(m.training for m in made.modules())
    assert {p.dtype for p in made.parameters()} == {torch.float64}
    first = [p.requires_grad for n, p in made.named_parameters() if n.startswith("0.") and n.endswith("weight")]
    assert first == [False, False]
    assert not any(m.training for m in lite(model.eval()).model.modules())


class Writing(nn.Module):
    """Writes to what an activation and a gate return, while the gate's input is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.gate, self.drop = nn.Conv2d(3, 8, 1), nn.SiLU(), Gated(), nn.Dropout(0.5, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv(x))
        z = self.gate(y)
        z += 1.0
        return self.drop(z * y)


def test_replacements_share_no_tensor_that_is_written_to() -> None:
    model = Writing()
    surgery = lite(model)
    x = torch.randn(2, 3, 4, 4)
    y = F.relu(model.conv(x))
    torch.testing.assert_close(outputs(surgery.model, x), (y + 1.0) * y)
    surgery.model.train()(x).sum().backward()
    assert [(c.path, c.after) for c in surgery.changes] == [
        ("act", "ReLU, copied"),
        ("gate", "Identity, copied"),
        ("drop", "Dropout(p=0.5)"),
    ]


FAMILIES = {
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 64,
    "efficientnet_b0": 64,
    "resnet18": 64,
    "convnext_tiny": 64,
    "shufflenet_v2_x0_5": 64,
    "regnet_y_400mf": 64,
    "densenet121": 64,
    "squeezenet1_0": 64,
}
SLOW = {
    "vgg11_bn": 32,
    "googlenet": 64,
    "swin_t": 64,
}


@pytest.mark.parametrize("name", [*FAMILIES, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_torchvision_families(name: str) -> None:
    make = getattr(load_torchvision().models, name)
    side = {**FAMILIES, **SLOW}[name]
    more = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make(num_classes=10, **more).eval()
        x = torch.randn(2, 3, side, side)
    before = copy.deepcopy(model.state_dict())
    kinds = [type(m) for m in model.modules()]
    state = torch.get_rng_state()
    surgery = lite(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    y = outputs(surgery.model, x)
    assert y.shape == outputs(model, x).shape
    assert torch.isfinite(y).all()
    assert torch.equal(y, outputs(surgery.model, x))
    assert torch.equal(y, outputs(lite(model).model, x)), "the surgery repeats"
    for path, module in surgery.model.named_modules():
        assert not isinstance(module, FORBIDDEN), path
        assert type(module).__name__ not in {"SqueezeExcitation", "Permute", "LayerNorm2d"} or name == "swin_t", path
        if isinstance(module, nn.Conv2d):
            assert max(module.kernel_size) <= 7, path
            assert all(k % 2 for k in module.kernel_size), path
        if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
            kernel = module.kernel_size
            assert max(kernel if isinstance(kernel, tuple) else (kernel,)) < 5, path
    training = surgery.model.train()
    result = training(x)
    (result if isinstance(result, Tensor) else result[0]).square().sum().backward()
    unreached = [n for n, p in training.named_parameters() if p.grad is None and "aux" not in n.lower()]
    assert not unreached
    if not surgery.needs_retraining:
        torch.testing.assert_close(y, outputs(model, x), rtol=1e-3, atol=1e-4)


def test_mobilenet_v2_is_relu6_to_relu_alone() -> None:
    model = load_torchvision().models.mobilenet_v2(num_classes=10)
    surgery = lite(model)
    assert {c.rule for c in surgery.changes} == {"relu6"}
    assert len(surgery.changes) == sum(isinstance(m, nn.ReLU6) for m in model.modules()) == 35
    assert surgery.model.state_dict().keys() == model.state_dict().keys()
    assert not surgery.unchanged


def test_efficientnet_loses_gates_and_swish() -> None:
    model = load_torchvision().models.efficientnet_b0(num_classes=10)
    surgery = lite(model)
    counts = {rule: sum(c.rule == rule for c in surgery.changes) for rule in ("squeeze-excitation", "silu")}
    gates = sum(type(m).__name__ == "SqueezeExcitation" for m in model.modules())
    inside = sum(type(m.activation) is nn.SiLU for m in model.modules() if type(m).__name__ == "SqueezeExcitation")
    assert counts == {"squeeze-excitation": gates, "silu": sum(type(m) is nn.SiLU for m in model.modules()) - inside}


def test_convnext_block_keeps_its_weights() -> None:
    model = load_torchvision().models.convnext_tiny(num_classes=10)
    block = model.features[1][0].block
    made = lite(model).model.features[1][0].block  # type: ignore[union-attr,index]
    assert [type(m) for m in made] == [nn.Conv2d, nn.BatchNorm2d, nn.Conv2d, nn.ReLU, nn.Conv2d]  # type: ignore[union-attr]
    assert torch.equal(made[0].weight, block[0].weight)  # type: ignore[index,union-attr]
    assert torch.equal(made[2].weight[:, :, 0, 0], block[3].weight)  # type: ignore[index,union-attr]
    x = torch.randn(2, 96, 8, 8)
    want = block[5](F.relu(block[3](x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
    torch.testing.assert_close(made[4](made[3](made[2](x))), want)  # type: ignore[index,operator]


def _classifier(limit: float) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A network whose ReLU6 cuts what exceeds 6, and images that go `limit` far."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    x = torch.rand(96, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * limit
    with torch.no_grad():
        y = model(x).argmax(1)
    return model, list(zip(x.split(32), y.split(32), strict=True))


def test_what_changes_cost_is_measured_before_retraining_is_asked_for() -> None:
    model, data = _classifier(1.0)
    surgery = lite(model, evaluation=data, metric="top1", progress=False)
    assert surgery.scores is not None
    np.testing.assert_array_equal(surgery.scores.lanes["lite"], surgery.scores.lanes["float"])
    assert surgery.loss is not None
    assert surgery.loss.value == 0.0
    assert not surgery.needs_retraining
    assert surgery.to_dict()["loss"]["value"] == 0.0
    assert lite(model).needs_retraining  # nothing was measured


def test_changes_that_cost_ask_for_retraining() -> None:
    model, data = _classifier(60.0)
    surgery = lite(model, evaluation=data, progress=False)
    assert surgery.scores is not None
    assert surgery.scores.metric == "top1"
    with torch.no_grad():
        right = torch.cat([surgery.model(x).argmax(1) == y for x, y in data]).double().numpy()
    np.testing.assert_array_equal(surgery.scores.lanes["lite"], right)
    assert right.mean() < 0.9
    assert surgery.needs_retraining


def test_exact_changes_need_no_data_and_empty_data_are_an_error() -> None:
    surgery = lite(nn.Sequential(nn.MaxPool2d(5)), evaluation=[], progress=False)
    assert surgery.scores is None
    assert not surgery.needs_retraining
    with pytest.raises(DataError):
        lite(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU()), evaluation=[], progress=False)
