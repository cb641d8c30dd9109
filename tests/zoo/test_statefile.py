"""Checkpoints as training code writes them: each is read right, and that is said, or refused with the reason."""

from __future__ import annotations

import argparse
import collections
import json
import logging
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qkit.errors import QkitError
from qkit.zoo.statefile import Chosen, choose, load_state, read_state
from qkit.zoo.usermodel import user_model

State = dict[str, Tensor]


def make(classes: int = 4, width: int = 6) -> nn.Module:
    """A small network with everything that a state dict has: parameters, running statistics, a counter."""
    return nn.Sequential(
        collections.OrderedDict(
            stem=nn.Conv2d(3, width, 3), norm=nn.BatchNorm2d(width), body=nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3)),
            head=nn.Linear(width, classes),
        )
    )  # fmt: skip


def weights(seed: int, model: nn.Module | None = None) -> State:
    """Weights that tell by their values which ones they are."""
    generator = torch.Generator().manual_seed(seed)
    state = (model or make()).state_dict()
    return {k: torch.rand(v.shape, generator=generator) if v.is_floating_point() else v for k, v in state.items()}


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


RAW, MEAN = weights(1), weights(2)
N = torch.tensor(3)


def taken(tmp_path: Path, content: Any, *, key: str | None = None, model: nn.Module | None = None) -> Chosen:
    torch.save(content, tmp_path / "w.pth")
    model = model or make()
    chosen = choose(read_state(tmp_path / "w.pth"), model.state_dict(), "Net", key=key)
    load_state(model, chosen)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in chosen.tensors.items())
    return chosen


def same(chosen: Chosen, state: State) -> bool:
    return set(chosen.tensors) == set(state) and all(torch.equal(chosen.tensors[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model.module.", "net.", "network.", "backbone.",
     "model._orig_mod.backbone.", "0.", "anything.at.all."],
)  # fmt: skip
@pytest.mark.parametrize(
    "wrapper", [None, "state_dict", "model_state_dict", "model", "net", "model_state", "params", "generator"]
)
def test_a_prefix_is_taken_off_and_said(
    prefix: str, wrapper: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = under(prefix, RAW)
    content = {wrapper: state, "epoch": 3, "args": argparse.Namespace(lr=0.1)} if wrapper else state
    chosen = taken(tmp_path, content)
    assert same(chosen, RAW)
    assert [prefix in remark for remark in chosen.remarks] == [True]
    assert prefix in caplog.text, "it is shown, not only kept"


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "params", "weights", "a.b"])
def test_weights_as_they_are_need_no_words(wrapper: str | None, tmp_path: Path) -> None:
    chosen = taken(tmp_path, RAW if wrapper is None else {wrapper: RAW, "epoch": 1, "best": np.float64(0.3)})
    assert same(chosen, RAW)
    assert chosen.remarks == ()


def test_a_prefix_stays_where_the_network_has_it(tmp_path: Path) -> None:
    wrapped = nn.DataParallel(make())
    assert same(taken(tmp_path, under("module.", RAW), model=wrapped), under("module.", RAW))
    assert taken(tmp_path, under("module.", RAW), model=wrapped).remarks == ()
    # and is put before the names where the network alone has it
    bare = taken(tmp_path, RAW, model=wrapped)
    assert same(bare, under("module.", RAW))
    assert ["'module.'" in remark for remark in bare.remarks] == [True]


def test_wrappers_within_names_are_taken_out(tmp_path: Path) -> None:
    inner = {
        name.replace("body.", "body._orig_mod.").replace("stem.", "stem._checkpoint_wrapped_module."): t
        for name, t in RAW.items()
    }
    chosen = taken(tmp_path, inner)
    assert same(chosen, RAW)
    pair = re.compile(r" stem\._checkpoint_wrapped_module\.weight .* stem\.weight\b")
    assert [bool(pair.search(remark)) for remark in chosen.remarks] == [True]
    compiled = make()
    compiled.body = nn.Sequential(collections.OrderedDict(_orig_mod=compiled.body))  # names as torch.compile makes them
    assert set(taken(tmp_path, RAW, model=compiled).tensors) == set(compiled.state_dict())


AVERAGES: dict[str, Callable[[], Any]] = {
    "model_ema": lambda: {"model": RAW, "model_ema": {**under("module.", MEAN), "n_averaged": N}, "epoch": 3},
    "state_dict_ema": lambda: {"state_dict": RAW, "state_dict_ema": MEAN},
    "ema": lambda: {"model": under("module.", RAW), "ema": MEAN, "updates": 7},
    "ema_state_dict": lambda: {"state_dict": RAW, "ema_state_dict": MEAN},
    "averaged_model": lambda: {"net": RAW, "averaged_model": {**under("module.", MEAN), "n_averaged": N}},
    "swa_model": lambda: {"model": RAW, "swa_model": MEAN},
    "params_ema": lambda: {"params": RAW, "params_ema": MEAN},
    "generator": lambda: {"g": RAW, "g_ema": MEAN, "d": {"w": torch.zeros(3)}},
    "within": lambda: {"state_dict": {**under("model.", RAW), **under("ema_model.module.", MEAN), "ema_model.n_averaged": N}},
    "callback": lambda: {"state_dict": under("model.", RAW), "callbacks": {"EMACallback": {"weights": under("model.", MEAN)}}},
    "nested": lambda: {"checkpoint": {"model": RAW, "extra_state": {"ema": MEAN}}},
    "beside bare names": lambda: {**RAW, **under("ema.module.", MEAN)},
}  # fmt: skip


@pytest.mark.parametrize("form", AVERAGES)
def test_averaged_weights_are_taken_and_how_to_take_the_raw_ones_is_said(form: str, tmp_path: Path) -> None:
    content = AVERAGES[form]()
    chosen = taken(tmp_path, content)
    assert same(chosen, MEAN)
    said = next(remark for remark in chosen.remarks if "weights_key=" in remark)
    assert repr(chosen.key) in said.partition("--weights-key")[0]
    raw = said.partition("weights_key='")[2].partition("'")[0]
    other = taken(tmp_path, content, key=raw)
    assert same(other, RAW)
    assert same(taken(tmp_path, content, key=chosen.key), MEAN)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": under("model.", MEAN), "current_model_state": under("model.", RAW), "averaging_state": {"n_averaged": N}},
        {"state_dict": MEAN, "ema_state_dict": {**under("module.", RAW), "steps": N}, "message_hub": {}, "meta": {}},
    ],
    ids=["Lightning's WeightAveraging", "MMEngine's EMAHook"],
)
def test_frameworks_that_swap_averages_into_the_usual_place_are_known(content: Any, tmp_path: Path) -> None:
    chosen = taken(tmp_path, content)
    assert same(chosen, MEAN)
    assert any(repr(chosen.key) in remark and "weights_key=" in remark for remark in chosen.remarks)


def test_averages_without_the_norms_statistics_are_not_taken_and_that_is_said(tmp_path: Path) -> None:
    partial = {name: tensor for name, tensor in MEAN.items() if "running" not in name and "tracked" not in name}
    chosen = taken(tmp_path, {"model": RAW, "model_ema": partial})
    assert same(chosen, RAW)
    assert "norm.running_mean" in chosen.remarks[0]
    with pytest.raises(QkitError, match=r"'model_ema\.'.* norm\.running_mean .*Net .*\b1\b"):
        taken(tmp_path, {"model": RAW, "model_ema": partial}, key="model_ema")


def test_an_unknown_key_lists_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(QkitError, match=r"'mean'.*'model', 'model_ema'"):
        taken(tmp_path, {"model": RAW, "model_ema": MEAN}, key="mean")
    with pytest.raises(QkitError, match=r"'ema'.*'\.'"):
        taken(tmp_path, RAW, key="ema")
    assert same(taken(tmp_path, RAW, key="."), RAW)


def test_several_weights_without_a_sign_which_are_meant_are_refused(tmp_path: Path) -> None:
    content = {"student": RAW, "teacher": MEAN}
    with pytest.raises(QkitError, match=r"--weights-key.*'student', 'teacher'"):
        taken(tmp_path, content)
    assert same(taken(tmp_path, content, key="teacher"), MEAN)
    # the same weights twice are one thing
    assert same(taken(tmp_path, {"best": RAW, "last": dict(RAW)}), RAW)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_converted_and_that_is_said(kind: torch.dtype, tmp_path: Path) -> None:
    chosen = taken(tmp_path, {name: t.to(kind) if t.is_floating_point() else t for name, t in RAW.items()})
    assert all(t.dtype == torch.float32 for name, t in chosen.tensors.items() if not name.endswith("tracked"))
    assert same(chosen, {name: t.to(kind).float() if t.is_floating_point() else t for name, t in RAW.items()})
    said = re.compile(rf"\b10\b.*\b11\b.*\b{str(kind).removeprefix('torch.')}\b.*\bfloat32\b")
    assert [bool(said.search(remark)) for remark in chosen.remarks] == [True]


def test_weights_in_integers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QkitError, match=r"stem\.weight .*\bint8\b.*\bfloat32\b.*quantized"):
        taken(tmp_path, {**RAW, "stem.weight": RAW["stem.weight"].to(torch.int8)})


def test_arrays_and_sparse_tensors_are_read_and_tensors_without_numbers_refused(tmp_path: Path) -> None:
    assert same(taken(tmp_path, {name: tensor.numpy() for name, tensor in RAW.items()}), RAW)
    assert same(taken(tmp_path, {**RAW, "head.weight": RAW["head.weight"].to_sparse()}), RAW)
    with pytest.raises(QkitError, match=r"stem\.weight.* meta"):
        taken(tmp_path, {name: tensor.to("meta") for name, tensor in RAW.items()})
    with pytest.raises(QkitError, match=r"stem\.weight .*\bcomplex64 (?!.*quantized).*\bfloat32\b"):
        taken(tmp_path, {**RAW, "stem.weight": RAW["stem.weight"].to(torch.complex64)})


def test_the_copy_that_was_not_asked_for_is_no_stranger(tmp_path: Path) -> None:
    chosen = taken(tmp_path, {"model": RAW, "ema": MEAN}, key="model")
    assert same(chosen, RAW)
    assert chosen.remarks == ()


def test_what_stands_beside_a_prefix_is_left_out_by_name_if_all_the_rest_fits(tmp_path: Path) -> None:
    beside = {"loss.weight": torch.ones(4), "metric.confusion": torch.zeros(4, 4)}
    chosen = taken(tmp_path, {"state_dict": {**under("model.", RAW), **beside}, "optimizer_states": [{"state": {0: RAW}}]})
    assert same(chosen, RAW)
    assert "loss.weight" in chosen.remarks[1]
    assert "metric.confusion" in chosen.remarks[1]
    short = {name: tensor for name, tensor in under("model.", RAW).items() if "head" not in name}
    with pytest.raises(QkitError, match=r"'state_dict\.model\.'.* head\.weight .*Net .*\b1\b"):
        taken(tmp_path, {"state_dict": {**short, **beside}})


def test_parts_of_a_network_under_keys_of_their_own_are_one_network(tmp_path: Path) -> None:
    parts = {
        part: {n.removeprefix(f"{part}."): t for n, t in RAW.items() if n.startswith(part)} for part in ("stem", "norm", "body")
    }
    head = {"weight": RAW["head.weight"], "bias": RAW["head.bias"]}
    adam = {"state": {"stem.weight": {"exp_avg": RAW["stem.weight"]}}}
    assert same(taken(tmp_path, {**parts, "head": head, "optimizer": adam}), RAW)


def test_a_lazy_module_takes_the_shapes_of_the_file(tmp_path: Path) -> None:
    lazy = nn.Sequential(nn.LazyConv2d(6, 3), nn.Flatten(), nn.LazyLinear(4))
    state = weights(1, nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(24, 4)))
    assert same(taken(tmp_path, {"state_dict": state}, model=lazy), state)


def test_torchvisions_own_files_of_densenet_have_names_of_another_time(tmp_path: Path) -> None:
    from qkit.zoo import load_torchvision

    old = re.compile(r"(denselayer\d+\.(?:norm|conv))(?=[12]\.)")
    net = load_torchvision().models.DenseNet(8, (2, 2), 8, num_classes=3)
    torch.save({old.sub(r"\1.", name): tensor for name, tensor in weights(1, net).items()}, tmp_path / "w.pth")
    chosen = choose(read_state(tmp_path / "w.pth"), net.state_dict(), "DenseNet")
    assert same(chosen, weights(1, net))
    assert "norm.1" in chosen.remarks[0]


def test_counters_of_batch_norms_may_be_missing(tmp_path: Path) -> None:
    chosen = taken(tmp_path, {name: tensor for name, tensor in RAW.items() if not name.endswith("tracked")})
    assert len(chosen.tensors) == 10


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            weights(1, make(classes=9)),
            r"head\.weight .*\(9, 6\).*Net .*\(4, 6\).*classes\b.*\b9\b.*\b4\b",
        ),
        (weights(1, make(width=8)), r"stem\.weight .*\(8, 3, 3, 3\).*Net .*\(6, 3, 3, 3\).* 8 .*\bwidth\b"),
        (
            {k: v for k, v in RAW.items() if "head" not in k},
            r"head\.weight .*Net .*\b1\b.*\bhead:",
        ),
        ({k: v for k, v in RAW.items() if "body" not in k}, r"body\.1\.weight .*Net .*\b1\b(?!.*(head|training))"),
        ({**RAW, "aux.weight": torch.ones(2)}, r"aux\.weight .*Net\b.*\btraining\b"),
        (under("m.", {**RAW, "aux.weight": torch.ones(2)}), r"'m\.'.*aux\.weight .*Net\b"),
        (
            {f"x{i}": v for i, v in enumerate(RAW.values())},
            r"Net .*'x0' .*\b10\b.*'stem\.weight'.*state_dict\(\)",
        ),
        ({"conv.w": torch.ones(2)}, r"Net .*'conv\.w' .*\b0\b.*'stem\.weight'(?!.*state_dict)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_tensors_and_the_likely_reason(
    content: State, said: str, tmp_path: Path
) -> None:
    with pytest.raises(QkitError, match=said):
        taken(tmp_path, content)


class Secret:
    """Of the user's own code."""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (make(), r"w\.pth .*torch\.nn\.modules\.container\.Sequential \("),
        ({"model": make(), "ema": None}, r"w\.pth .*torch\.nn\.modules\.container\.Sequential \("),
        ({"state_dict": RAW, "config": Secret()}, r"w\.pth .*\.Secret\b(?! \()"),
    ],
)
def test_refusals_name_the_class_and_never_advise_to_run_the_file(content: Any, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(QkitError, match=said) as refused:
        read_state(tmp_path / "w.pth")
    for word in ("weights_only", "safe_globals", "trust the source"):
        assert word not in str(refused.value)
    assert "state_dict()" in str(refused.value)


def test_what_scripts_keep_beside_weights_is_no_obstacle(tmp_path: Path) -> None:
    beside = {
        "args": argparse.Namespace(out=Path("x")), "space": types.SimpleNamespace(a=1), "best": np.float32(0.5),
        "log": collections.defaultdict(list), "history": np.arange(3.0), "epoch": np.int64(4),
    }  # fmt: skip
    assert same(taken(tmp_path, {"state_dict": RAW, **beside}), RAW)


def test_a_torchscript_archive_is_told_from_weights(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Conv2d(3, 4, 3), torch.rand(1, 3, 5, 5)), tmp_path / "w.pt")
    with pytest.raises(QkitError, match="TorchScript") as refused:
        read_state(tmp_path / "w.pt")
    assert "weights_only" not in str(refused.value)


def test_files_cut_short_and_of_other_libraries_are_named(tmp_path: Path) -> None:
    torch.save(RAW, tmp_path / "w.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:-200])
    with pytest.raises(QkitError, match=r"cut\.pth .*\(\w+Error\)"):
        read_state(tmp_path / "cut.pth")
    (tmp_path / "w.h5").touch()
    with pytest.raises(QkitError, match=r"w\.h5 .*Keras"):
        read_state(tmp_path / "w.h5")
    with pytest.raises(QkitError, match=rf"{re.escape(str(tmp_path))} .*folder"):
        read_state(tmp_path)
    torch.save({"a": {"b": 3}}, tmp_path / "none.pth")
    with pytest.raises(QkitError, match=r"none\.pth .*'a\.b'"):
        read_state(tmp_path / "none.pth")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_by_their_index(suffix: str, tmp_path: Path) -> None:
    names = list(RAW)
    parts = {f"part-{i}.{suffix}": {name: RAW[name] for name in names[i::2]} for i in (0, 1)}
    for file, part in parts.items():
        (save_file if suffix == "safetensors" else torch.save)(part, tmp_path / file)
    places = {name: file for file, part in parts.items() for name in part}
    index = tmp_path / f"model.{suffix}.index.json"

    def read(places: Any) -> Chosen:
        index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
        return choose(read_state(index), make().state_dict(), "Net")

    assert same(read(places), RAW)
    with pytest.raises(QkitError, match=r"index\.json .* other\.bin"):
        read({**places, "more": "other.bin"})
    with pytest.raises(QkitError, match=rf"part-0\.{suffix} .*'more'.*index\.json"):
        read({**places, "more": f"part-0.{suffix}"})
    for outside in (f"../part-0.{suffix}", str(tmp_path / f"part-0.{suffix}"), "..", "a\\b"):
        with pytest.raises(QkitError, match=rf"index\.json .*{re.escape(repr(outside))}"):
            read({**places, "more": outside})
    with pytest.raises(QkitError, match=r"index\.json .*weight_map"):
        read(["a"])


def test_torchvisions_number_of_classes_is_read_behind_prefixes_and_of_the_averaged_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from qkit.zoo import load_torchvision

    with torch.random.fork_rng():
        net = load_torchvision().models.get_model("squeezenet1_1", weights=None, num_classes=5)
    state = net.state_dict()
    raw = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save({"model": raw, "model_ema": under("module.", state)}, tmp_path / "w.pth")
    caplog.set_level(logging.WARNING)
    made = user_model("squeezenet1_1", tmp_path / "w.pth")
    assert isinstance(made.model, nn.Module)
    assert all(torch.equal(tensor, state[name]) for name, tensor in made.model.state_dict().items())
    assert len(made.remarks) == 2
    other = user_model("squeezenet1_1", tmp_path / "w.pth", weights_key="model")
    assert isinstance(other.model, nn.Module)
    assert not any(tensor.any() for tensor in other.model.state_dict().values())
