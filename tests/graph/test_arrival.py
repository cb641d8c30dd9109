"""What is taken, unwrapped or refused as a model, with real objects of torch and torchao."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from qkit.errors import DataError, GraphError
from qkit.graph.door.arrival import arrive, is_file
from qkit.graph.door.copying import copy_of
from qkit.graph.door.refusals import check_tensors
from qkit.graph.door.wrappers import remarks_inside, unwrap_inside

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


class TwoParts(nn.Module):
    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def fabric(model: nn.Module) -> nn.Module:
    """Like Lightning Fabric's wrapper, by name and attributes."""

    class _FabricModule(nn.Module):
        __module__, __qualname__ = "lightning.fabric.wrappers", "_FabricModule"

        def __init__(self) -> None:
            super().__init__()
            self._forward_module = model

        def forward(self, x: Tensor) -> Tensor:
            return self._forward_module(x)

    return _FabricModule()


def checkpointed(model: nn.Module) -> nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    return checkpoint_wrapper(model)


class OwnParallel(nn.DataParallel):
    """A subclass, as mmcv has one."""


WRAPPERS = {
    "DataParallel": nn.DataParallel, "torch.compile": compiled, "AveragedModel": AveragedModel, "Fabric": fabric,
    "checkpoint": checkpointed, "nn.DataParallel": OwnParallel,
}  # fmt: skip


# ---- wrappers


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_around_the_model_is_taken_off_and_said(name: str) -> None:
    net = Net().eval()
    arrival = arrive(WRAPPERS[name](net))
    assert type(arrival.model) is Net
    assert (arrival.model is net) is (name != "AveragedModel"), "averaging copies"
    (remark,) = arrival.remarks
    assert name in remark
    assert "Net" in remark


def test_ddp_is_taken_off(group: None) -> None:
    net = Net()
    arrival = arrive(nn.parallel.DistributedDataParallel(net))
    assert arrival.model is net
    assert "DistributedDataParallel" in arrival.remarks[0]


def test_wrappers_in_any_order(group: None) -> None:
    net = Net()
    one = compiled(nn.parallel.DistributedDataParallel(net))
    two = AveragedModel(nn.DataParallel(compiled(net)))
    assert arrive(one).model is net
    named = re.compile(r"torch\.compile|nn\.DataParallel|DistributedDataParallel")
    assert [named.findall(remark) for remark in arrive(one).remarks] == [["torch.compile"], ["DistributedDataParallel"]]
    assert type(arrive(two).model) is Net
    assert len(arrive(two).remarks) == 3


def test_what_is_no_wrapper_stays() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self._orig_mod = Net(), Net()

    own = Own()
    arrival = arrive(own)
    assert arrival.model is own
    assert arrival.remarks == ()


def test_averaged_weights_and_what_to_know_of_them() -> None:
    averaged = AveragedModel(Net())
    fresh = arrive(averaged).remarks[0]
    averaged.update_parameters(Net())
    remark = arrive(averaged).remarks[0]
    assert all("AveragedModel" in said and "(Net)" in said for said in (fresh, remark))
    assert fresh != remark, "that nothing has been averaged yet"
    assert "update_bn" not in fresh
    assert "update_bn" in remark
    assert "update_bn" not in arrive(AveragedModel(Net(), use_buffers=True)).remarks[0]
    assert arrive(averaged).model is averaged.module


def test_hooks_of_a_wrapper_are_mentioned() -> None:
    wrapper = nn.DataParallel(Net())
    wrapper.register_forward_hook(lambda *_: None)
    assert "Hooks" in arrive(wrapper).remarks[0]


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_inside_are_left_out_of_the_copy(name: str) -> None:
    model = TwoParts(
        nn.Sequential(WRAPPERS[name](nn.Sequential(Net(), nn.ReLU()))), compiled(nn.DataParallel(nn.Linear(4, 2)))
    ).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(X)
    arrival = arrive(model)
    assert arrival.model is model
    inside, head = arrival.remarks
    assert name in inside
    assert "body.0.…" in inside
    assert "head._orig_mod.module.…" in head
    copied = copy_of(model)
    keys = {f"body.0.0.{key}" for key in Net().state_dict()} | {"head.weight", "head.bias"}
    assert copied.state_dict().keys() == keys
    assert torch.equal(copied(X), expected)
    assert remarks_inside(copied) == ()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert unwrap_inside(model) == arrival.remarks
    assert model.state_dict().keys() == keys
    assert torch.equal(model(X), expected)


def test_ddp_inside(group: None) -> None:
    model = TwoParts(nn.parallel.DistributedDataParallel(Net()), nn.DataParallel(nn.Linear(4, 2))).eval()
    copied = copy_of(model)
    assert type(copied.body) is Net
    assert torch.equal(copied(X), model(X))


def test_a_wrapper_inside_a_wrapped_part_has_its_path_without_the_outer_one() -> None:
    model = nn.Sequential(nn.DataParallel(nn.Sequential(nn.ReLU(), compiled(Net()))))
    outer, inner = arrive(model).remarks
    assert re.match(r"0 .*\bnn\.DataParallel: ", outer)
    assert re.match(r"0\.1 .*\btorch\.compile: ", inner)
    assert "0.module.1._orig_mod.…" in inner
    assert unwrap_inside(model) == (outer, inner)
    assert type(model[0][1]) is Net


def test_a_shared_wrapper_is_shared_in_the_copy() -> None:
    wrapper = nn.DataParallel(nn.Linear(4, 4))
    model = nn.Sequential(wrapper, wrapper, wrapper.module)
    copied = copy_of(model)
    assert copied[0] is copied[1] is copied[2]
    assert type(copied[0]) is nn.Linear
    assert len(unwrap_inside(model)) == 2
    assert model[0] is model[1] is model[2]


# ---- refusals


def fx_prepared(convert: bool = False) -> nn.Module:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    prepared = prepare_fx(Net().eval(), get_default_qconfig_mapping("x86"), (X,))
    prepared(X)
    return convert_fx(prepared) if convert else prepared


def eager_prepared(convert: bool = False) -> nn.Module:
    from torch.ao import quantization as q

    model = nn.Sequential(q.QuantStub(), Net(), q.DeQuantStub()).eval()
    model.qconfig = q.get_default_qconfig("x86")
    prepared = q.prepare(model)
    prepared(X)
    return q.convert(prepared) if convert else prepared


def eager_qat() -> nn.Module:
    from torch.ao import quantization as q

    model = nn.Sequential(q.QuantStub(), Net(), q.DeQuantStub()).train()
    model.qconfig = q.get_default_qat_qconfig("x86")
    return q.prepare_qat(model)


def dynamic() -> nn.Module:
    from torch.ao import quantization as q

    return q.quantize_dynamic(Net().eval(), {nn.Linear}, torch.qint8)


def pt2e(convert: bool = False) -> nn.Module:
    xiq = pytest.importorskip("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = xiq.X86InductorQuantizer().set_global(xiq.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(Net().eval(), (X,)).module(), quantizer)
    prepared(X)
    return convert_pt2e(prepared) if convert else prepared


def torchao_weights() -> nn.Module:
    ao = pytest.importorskip("torchao.quantization")
    model = Net().eval()
    ao.quantize_(model, ao.Int8WeightOnlyConfig())
    return model


def fake_quantized_graph() -> nn.Module:
    class Fake(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)

    return torch.fx.symbolic_trace(nn.Sequential(Net(), Fake()))


def linear_of(dtype: torch.dtype) -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 4).to(dtype), requires_grad=False)
    return TwoParts(Net(), layer)


def packed() -> nn.Module:
    layer = nn.Identity()
    layer.register_buffer("qweight", torch.zeros(4, 1, dtype=torch.int32))
    layer.register_buffer("scales", torch.ones(4))
    return TwoParts(Net(), layer)


QUANTIZED = {
    "fx prepared": (fx_prepared, "activation_post_process_0"),
    "fx converted": (lambda: fx_prepared(convert=True), "GraphModule"),
    "eager prepared": (eager_prepared, r"0\.activation_post_process"),
    "eager converted": (lambda: eager_prepared(convert=True), "Sequential.0 "),
    "eager, training": (eager_qat, r"0\.activation_post_process"),
    "dynamic": (dynamic, "Net.fc "),
    "pt2e prepared": (pt2e, "activation_post_process"),
    "pt2e converted": (lambda: pt2e(convert=True), "quantize_per"),
    "pt2e inside": (lambda: nn.Sequential(pt2e(convert=True)), "Sequential.0 .*quantize_per"),
    "torchao": (torchao_weights, "fc.weight"),
    "fake quantized graph": (fake_quantized_graph, "fake_quantize"),
    "int8 linear": (lambda: linear_of(torch.int8), r"head\.weight .*int8"),
    "4 bit linear": (lambda: linear_of(torch.uint8), r"head\.weight .*uint8"),
    "float8 linear": (lambda: linear_of(torch.float8_e4m3fn), r"head\.weight .*float8"),
    "packed": (packed, "head .*qweight"),
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_models_are_refused_with_the_place_and_the_float_model_as_cure(kind: str) -> None:
    make, where = QUANTIZED[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make()
    with pytest.raises(GraphError, match=where) as error:
        arrive(model)
    assert "float" in str(error.value)
    assert "ONNX" in str(error.value)


def test_a_program_of_a_quantized_model_is_refused() -> None:
    program = torch.export.export(pt2e(convert=True), (X,))
    with pytest.raises(GraphError, match=r"quantize_per.*\bfloat\b.*\bONNX\b"):
        arrive(program)


def test_a_float_model_made_for_quantization_is_taken() -> None:
    from torch.ao import quantization as q

    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add, self.net = torch.ao.nn.quantized.FloatFunctional(), Net()

        def forward(self, x: Tensor) -> Tensor:
            return self.add.add(self.net(x), 1.0)

    model = nn.Sequential(q.QuantStub(), Adds(), q.DeQuantStub()).eval()
    model.qconfig = q.get_default_qconfig("x86")
    assert arrive(model).model is model
    fused = q.fuse_modules(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(), ["0", "1", "2"])
    assert arrive(fused).model is fused


@pytest.mark.parametrize("script", [torch.jit.script, lambda net: torch.jit.trace(net, X)], ids=["script", "trace"])
def test_torchscript_is_refused_by_path(script: Any) -> None:
    scripted = script(Net().eval())
    for model, where in (
        (scripted, ""),
        (nn.Sequential(nn.ReLU(), scripted), "Sequential.1 is "),
        (nn.DataParallel(scripted), ""),
    ):
        with pytest.raises(GraphError, match=rf"{where}.*TorchScript"):
            arrive(model)


@pytest.mark.parametrize("lazy", [nn.LazyConv2d(4, 3), nn.LazyLinear(4), nn.LazyBatchNorm2d()], ids=lambda m: type(m).__name__)
def test_lazy_modules_that_never_ran(lazy: nn.Module) -> None:
    with pytest.raises(GraphError, match=r"Sequential\.1\.weight .*\bshape\b.*\blazy\b.*\bbatch\b"):
        arrive(nn.Sequential(nn.ReLU(), lazy))


def test_a_lazy_module_that_ran_is_an_ordinary_one() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3)).eval()
    model(X)
    assert torch.equal(copy_of(arrive(model).model)(X), model(X))


@pytest.mark.parametrize("keep", [True, False])
def test_fsdp_is_refused_with_the_way_to_whole_weights(group: None, keep: bool) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(Net(), use_orig_params=keep, device_id=torch.device("cpu"))
    with pytest.raises(GraphError, match=r"FSDP.*full_state_dict"):
        arrive(model)


def test_fully_shard_is_refused_with_the_way_to_whole_weights(group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = Net()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(GraphError, match="full_state_dict"):
        arrive(model)


NO_MODEL = {
    "class": (nn.Conv2d, r"\btype: .*\bConv2d\(…\)"),
    "function": (lambda: Net(), r"\bfunction\b.*\bforward\b"),
    "state dict": (Net().state_dict(), r"\bOrderedDict: .*\b9\b.*load_state_dict\(state\)"),
    "checkpoint": ({"epoch": 3, "state_dict": Net().state_dict()}, r"load_state_dict\(checkpoint\['state_dict'\]\)"),
    "checkpoint with a module": ({"epoch": 3, "model": Net()}, r"checkpoint\['model'\]"),
    "dict": ({"epoch": 3}, r"\bdict: (?!.*load_state_dict)"),
    "name": ("resnet18", r"torch\.nn\.Module .*\bstr: 'resnet18' "),
    "checkpoint file": ("net.pth", r"\bstr: 'net\.pth' .*weights_only=True"),
    "path": (Path("net.ckpt"), r"\bPosixPath: 'net\.ckpt' .*weights_only=True"),
    "layers": ([nn.ReLU(), Net()], r"nn\.Sequential\(\*layers\)"),
    "tensor": (X, r"\bTensor: "),
    "None": (None, r"torch\.nn\.Module .*\bNoneType: "),
}


@pytest.mark.parametrize("kind", NO_MODEL)
def test_what_is_no_model(kind: str) -> None:
    thing, said = NO_MODEL[kind]
    with pytest.raises(GraphError, match=rf"(?s){said}"):
        arrive(thing)


def test_a_scripted_function() -> None:
    with pytest.raises(GraphError, match=r"\bScriptFunction: .*\bscripted\b"):
        arrive(torch.jit.script(torch.nn.functional.relu6))


@pytest.mark.parametrize("path", ["net.onnx", "a/net.PT2", Path("net.onnx")], ids=str)
def test_files_that_a_study_opens_pass(path: Any) -> None:
    assert is_file(path)
    assert arrive(path).model is path
    assert not is_file("net.pth")
    assert not is_file(Net())


def test_programs_and_their_modules_pass() -> None:
    program = torch.export.export(Net().eval(), (X,))
    assert arrive(program).model is program
    module = program.module()
    assert arrive(module).model is module
    assert check_tensors(program) == torch.device("cpu")
    assert torch.equal(copy_of(module)(X), module(X))


def test_an_export_in_training_mode_is_refused() -> None:
    program = torch.export.export(nn.Sequential(Net(), nn.Dropout()).train(), (X,))
    for model in (program, program.module()):
        with pytest.raises(GraphError, match=r"\btraining\b.*batch_norm.*model\.eval\(\)"):
            arrive(model)
    dropped = torch.export.export(nn.Sequential(nn.Dropout()).train(), (X,))
    with pytest.raises(GraphError, match=r"\btraining\b.*dropout.*model\.eval\(\)"):
        arrive(dropped)


# ---- tensors


def test_a_model_without_parameters_runs_on_the_cpu() -> None:
    assert check_tensors(nn.ReLU()) == torch.device("cpu")
    assert arrive(nn.ReLU()).remarks == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_name_the_first_and_count_the_others(dtype: torch.dtype) -> None:
    with pytest.raises(DataError, match=rf"^weight .*{dtype} .*\b1\b.*float32\b.*model\.float\(\)"):
        check_tensors(nn.Conv2d(3, 3, 1).to(dtype))
    model = Net()
    model.norm.running_var = model.norm.running_var.to(dtype)
    with pytest.raises(DataError, match=rf"^norm\.running_var .*{dtype};(?!.*\b1\b)"):
        check_tensors(model)


def test_meta_devices_and_devices_that_are_not_there() -> None:
    with torch.device("meta"):
        empty = Net()
    with pytest.raises(DataError, match=r"^conv\.weight .*\bmeta\b.*\b8\b"):
        check_tensors(empty)
    half = Net()
    half.fc.to("meta")
    with pytest.raises(DataError, match=r"^Net .*\(cpu, meta\).*device="):
        check_tensors(half)
    with pytest.raises(DataError, match=r"^fc\.weight .*\bmeta\b.*\b1\b"):
        check_tensors(half, "cpu")
    for device in ("meta", "gpu", "xpu:9"):
        with pytest.raises(DataError, match=f"device='{device}'"):
            check_tensors(Net(), device)


# ---- copies


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_a_copy_shares_nothing_and_is_in_evaluation_mode() -> None:
    model = Net().train()
    copied = copy_of(model)
    assert not any(m.training for m in copied.modules())
    assert all(m.training for m in model.modules())
    assert not any(p.requires_grad for p in copied.parameters())
    assert all(p.requires_grad for p in model.parameters())
    mine = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert mine.isdisjoint(t.data_ptr() for t in (*copied.parameters(), *copied.buffers()))


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    copied = copy_of(model)
    assert copied[0].weight is copied[1].weight


OLD_STYLE = {
    "weight_norm": lambda m: nn.utils.weight_norm(m),
    "spectral_norm": lambda m: nn.utils.spectral_norm(m),
    "pruned": lambda m: nn.utils.prune.l1_unstructured(m, "weight", amount=0.3),
    "pruned twice": lambda m: nn.utils.prune.random_unstructured(
        nn.utils.prune.ln_structured(m, "weight", amount=0.3, n=2, dim=0), "weight", amount=0.2
    ),
    "parametrized weight_norm": nn.utils.parametrizations.weight_norm,
    "parametrized spectral_norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
}


@pytest.mark.parametrize("kind", OLD_STYLE)
@pytest.mark.parametrize("ran", [True, False])
def test_computed_weights_are_plain_in_the_copy(kind: str, ran: bool) -> None:
    model = nn.Sequential(OLD_STYLE[kind](nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Flatten(), OLD_STYLE[kind](nn.Linear(4 * 36, 5)))
    if ran:
        model(X)
    reference = copy.deepcopy(model) if "ortho" in kind or "param" in kind else model
    before, types = state(model), [type(m) for m in model.modules()]
    copied = copy_of(model)
    assert copied.state_dict().keys() == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert {type(m) for m in copied.modules()} == {nn.Sequential, nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear}
    assert all(isinstance(m.weight, nn.Parameter) and not m.weight.requires_grad for m in (copied[0], copied[3]))
    assert not copied[0]._forward_pre_hooks
    assert [type(m) for m in model.modules()] == types
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert torch.allclose(copied(X), reference.eval()(X), atol=1e-6)
    assert torch.allclose(copy_of(copied)(X), copied(X), atol=0)


def test_a_weight_normed_recurrent_layer() -> None:
    model = nn.LSTM(3, 4)
    nn.utils.weight_norm(model, "weight_hh_l0")
    x = torch.randn(5, 2, 3)
    copied = copy_of(model)
    assert "weight_hh_l0" in dict(copied.named_parameters())
    assert torch.allclose(copied(x)[0], model(x)[0], atol=1e-6)


def test_own_parameters_named_like_a_weight_norms_stay() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight_g, self.weight_v = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(3))
            self.weight = torch.full((3,), 2.0)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    copied = copy_of(Scaled())
    assert copied.state_dict().keys() == {"weight_g", "weight_v"}
    assert torch.equal(copied(torch.ones(3)), torch.full((3,), 2.0))


def test_a_parametrized_buffer_stays_a_buffer() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    model = nn.BatchNorm1d(3)
    nn.utils.parametrize.register_parametrization(model, "running_var", Double())
    copied = copy_of(model)
    assert "running_var" in dict(copied.named_buffers())
    assert torch.equal(copied.running_var, torch.full((3,), 2.0))


def test_compiled_forwards_run_the_copy() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    layer, own, whole = nn.Linear(3, 3), Own(3, 3), nn.Linear(3, 3)
    layer.forward = torch.compile(layer.forward, backend="eager")
    own.forward = torch.compile(own.forward, backend="eager")
    whole.compile(backend="eager")
    for model in (layer, own, whole):
        copied = copy_of(model)
        assert "forward" not in vars(copied)
        copied.weight.zero_()
        copied.bias.zero_()
        assert not copied(torch.ones(1, 3)).any()
        assert model.weight.abs().sum() > 0


class Lock:
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot pickle '_thread.lock' object")


def test_what_keeps_a_model_from_being_copied_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model[0].cached = model[0].weight * 2
    with pytest.raises(GraphError, match=r"^Sequential .*: 0\.cached .*0\.cached\.detach\(\)"):
        copy_of(model)
    del model[0].cached
    model[0].logger = Lock()
    with pytest.raises(GraphError, match=r"^Sequential .*_thread\.lock.*: 0\.logger .*\bLock\b"):
        copy_of(model)
