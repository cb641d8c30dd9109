"""How a batch is handed to a model, and how its output is taken apart and rebuilt."""

from __future__ import annotations

import re
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qkit.errors import DataError, GraphError
from qkit.graph.door.arguments import (
    arguments,
    batch_size,
    call_arguments,
    does_not_run,
    doubled,
    flatten_output,
    leaves,
    rebuild_output,
)
from qkit.graph.structures import flatten, float_tensors, fresh, map_tensors, rebuild

X, MASK = torch.zeros(4, 3, 8, 8), torch.ones(4, 8)
Boxes = namedtuple("Boxes", ["where", "scores"])


def model(forward: Any) -> nn.Module:
    """A module whose class has that forward; `forward` takes self."""
    return type("Net", (nn.Module,), {"forward": forward})()


@dataclass
class ImageOutput(OrderedDict):
    """Like transformers' ModelOutput: fields that are not None are its items, by name."""

    logits: Tensor | None = None
    loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            if getattr(self, name) is not None:
                super().__setitem__(name, getattr(self, name))


@dataclass(frozen=True)
class Detections:
    boxes: Tensor
    scores: Tensor
    scale: float = 1.0
    count: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        raise_if_none = self.boxes.shape  # a structure without tensors must not come through here
        object.__setattr__(self, "count", raise_if_none[0])


class Feature(UserDict):
    """Like transformers' BatchFeature: a mapping that is no dict."""


# ---- calls


@pytest.mark.parametrize(
    ("forward", "batch"),
    [
        (lambda self, pixel_values: None, {"pixel_values": X}),
        (lambda self, pixel_values, mask=None: None, {"mask": MASK, "pixel_values": X}),
        (lambda self, *, image, mask=None: None, {"image": X}),
        (lambda self, **kwargs: None, {"anything": X, "else": MASK}),
        (lambda self, image, **kwargs: None, {"image": X, "image_metas": [1]}),
        (lambda self, image, *rest, **kwargs: None, {"image": X}),
    ],
)
@pytest.mark.parametrize("kind", [dict, Feature])
def test_a_dict_of_parameters_goes_as_keywords(forward: Any, batch: dict[str, Any], kind: type) -> None:
    args, kwargs = call_arguments(model(forward), (kind(batch),))
    assert args == ()
    assert type(kwargs) is dict
    assert kwargs.keys() == batch.keys()
    assert all(kwargs[key] is batch[key] for key in batch)


@pytest.mark.parametrize(
    ("forward", "batch"),
    [
        (lambda self, batch: None, {"image": X}),
        (lambda self, batch, train=False: None, {"image": X, "mask": MASK}),
        (lambda self, batch, **kwargs: None, {"image": X}),
        (lambda self, *inputs: None, {"image": X}),
        (lambda self, image, /: None, {"image": X}),
        (lambda self, levels: None, {0: X, 1: X}),
        (lambda self, levels: None, {}),
        (lambda self, inputs: None, {"input": X}),
    ],
)
def test_any_other_dict_is_one_argument(forward: Any, batch: dict[Any, Any]) -> None:
    args, kwargs = call_arguments(model(forward), (batch,))
    assert kwargs == {}
    assert args[0] is batch


@pytest.mark.parametrize(
    "inputs", [(X,), (X, MASK), (X, {"mask": MASK}), ({"image": X}, MASK), ([X, X], None)], ids=lambda i: f"{len(i)}"
)
def test_several_inputs_go_by_position(inputs: tuple[Any, ...]) -> None:
    args, kwargs = call_arguments(model(lambda self, a, b=None: None), inputs)
    assert kwargs == {}
    assert all(a is b for a, b in zip(args, inputs, strict=True))


@pytest.mark.parametrize(
    ("forward", "inputs", "said"),
    [
        (
            lambda self, pixel_values, mask=None: None,
            ({"pixel_values": X, "masks": MASK},),
            r"\(pixel_values, masks\).*pixel_values, mask=None.*\bmasks\b.*\bmask\b.*\bmasks\b",
        ),
        (
            lambda self, image, mask: None,
            ({"images": X, "masks": MASK},),
            r"\(images, masks\).*\bimage, mask\b.*\bimages\b.*\bimage, mask\b",
        ),
        (lambda self, image, mask: None, ({"image": X},), r"\bimage, mask\b.*\bmask\b"),
        (lambda self, image, mask: None, (X,), r"\(4, 3, 8, 8\).*\bimage, mask\b.*\bmask\b"),
        (lambda self, *, image: None, (X,), r"\(4, 3, 8, 8\).*\bimage\b.*\bimage\b"),
        (lambda self, *, image: None, ({"img": X},), r"\(img\).*\bimage\b"),
        (lambda self, image: None, (X, MASK), r"\(4, 3, 8, 8\).*\bimage\b.*\bpositional arguments\b"),
        (lambda self: None, (X,), r"\(4, 3, 8, 8\)(?!.*image).*\bpositional arguments\b"),
        (
            lambda self, image, *, mode: None,
            ({"image": X, "other": 1},),
            r"\(image, other\).*\bimage, mode\b.*\bother\b.*\bmode\b",
        ),
    ],
)
def test_a_batch_that_cannot_be_handed_over_names_both_sides(forward: Any, inputs: tuple[Any, ...], said: str) -> None:
    with pytest.raises(DataError, match=f"^Net .*{said}"):
        call_arguments(model(forward), inputs)


def test_torch_modules_are_called_as_they_are() -> None:
    assert call_arguments(nn.Conv2d(3, 4, 3), (X,)) == ((X,), {})
    assert call_arguments(nn.Conv2d(3, 4, 3), ({"input": X},)) == ((), {"input": X})
    assert call_arguments(nn.MultiheadAttention(8, 2), (X, X, X))[1] == {}


def test_an_exported_graph_has_its_parameters_by_name() -> None:
    program = torch.export.export(nn.Conv2d(3, 4, 3), (torch.zeros(2, 3, 8, 8),))
    exported = program.module()
    args, kwargs = call_arguments(exported, (torch.zeros(2, 3, 8, 8),))
    assert exported(*args, **kwargs).shape == (2, 4, 6, 6)


def test_code_without_a_signature_takes_what_it_is_given() -> None:
    class Compiled(nn.Module):
        forward = min  # a built-in that has no signature

    assert call_arguments(Compiled(), (X, MASK)) == ((X, MASK), {})


def test_an_error_of_the_model_is_told_with_shapes_and_near_keys() -> None:
    net = model(lambda self, image, mask=None: image["image"])
    args, kwargs = call_arguments(net, ({"img": X, "masks": MASK},))
    error = does_not_run(net, args, kwargs, KeyError("image"))
    for word in ("(4, 3, 8, 8)", "'image'", "img, masks", "image, mask=None"):
        assert word in str(error)
    assert re.search(r"^Net .*mask=None.*\bmask .*\bmasks\b", str(error))
    plain = does_not_run(nn.Linear(2, 2), (X, 3), {"mask": MASK}, RuntimeError("first\nsecond"))
    assert isinstance(plain, DataError)
    assert "first" in str(plain)
    assert "second" not in str(plain)
    assert "mask: (4, 8) torch.float32" in str(plain)


# ---- leaves


def names(net: nn.Module | None, *args: Any, **kwargs: Any) -> list[str]:
    return [leaf.name for leaf in leaves(args, kwargs, net)[0]]


def test_the_first_tensor_is_input_and_all_others_have_their_way() -> None:
    net = model(lambda self, image, mask=None, *rest, **kwargs: None)
    assert names(net, X) == ["input"]
    assert names(net, X, MASK) == ["input", "input:mask"]
    assert names(net, X, None) == ["input", "input:mask"]
    assert names(net, pixel_values=X, mask=MASK) == ["input", "input:mask"]
    assert names(net, None, X) == ["input:image", "input"]
    assert names(net, [X, X], {"low": X, "high": (X, 2)}) == [
        "input", "input:image[1]", "input:mask.low", "input:mask.high[0]", "input:mask.high[1]",
    ]  # fmt: skip
    assert names(net, X, X, X, X) == ["input", "input:mask", "input:rest[0]", "input:rest[1]"]
    assert names(None, X, X) == ["input", "input:1"]
    assert names(net, {"a.b": X, "a": {"b": X}, "c": X}) == ["input", "input:image.a.b", "input:image.c"]
    assert names(net, 1, {"a.b": X, "a": {"b": X}, "c": {"d": X}, "c.d": X})[-2:] == ["input:mask.c.d", "input:mask.c.d#2"]


def test_arguments_come_back_as_they_were() -> None:
    args, kwargs = (X, [MASK, (None, 3)]), {"boxes": Boxes(X, MASK), "detections": Detections(X, MASK)}
    found, specs = leaves(args, kwargs)
    again, keywords = arguments(specs, [leaf.value for leaf in found])
    assert again[0] is X
    assert again[1][0] is MASK
    assert again[1][1] == (None, 3)
    assert isinstance(keywords["boxes"], Boxes)
    assert keywords["detections"].boxes is X
    assert len(again) == 2
    assert list(keywords) == ["boxes", "detections"]


def test_batch_size_is_the_first_tensors() -> None:
    assert batch_size(leaves((3, X), {})[0]) == 4
    assert batch_size(leaves((torch.tensor(2.0), X), {})[0]) == 4
    assert batch_size(leaves((torch.tensor(2.0),), {})[0]) == 1
    with pytest.raises(DataError, match=r"\btensor\b.*input:0: int"):
        batch_size(leaves((3,), {})[0])
    with pytest.raises(DataError, match="empty"):
        batch_size(leaves((torch.zeros(0, 3),), {})[0])


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_doubled_has_exactly_two_samples(size: int) -> None:
    x, ids, shared = torch.randn(size, 3, 5), torch.randint(0, 9, (size, 7)), torch.randn(13, 5)
    found = leaves((x,), {"ids": ids, "shared": shared, "number": size, "scalar": torch.tensor(1.0)})[0]
    made = {leaf.name: leaf.value for leaf in doubled(found)}
    assert made["input"].shape == (2, 3, 5)
    assert made["input:ids"].shape == (2, 7)
    assert made["input:ids"].dtype == ids.dtype
    assert torch.equal(made["input"], x[:2] if size > 1 else torch.cat([x, x]))
    assert made["input:shared"] is shared
    assert made["input:number"] == size
    assert made["input:scalar"].ndim == 0
    made["input"].zero_()
    assert x.abs().sum() > 0, "the user's batch is not written to"


# ---- outputs


def full_output() -> Any:
    return {
        "logits": X,
        "boxes": Boxes(MASK, [X, None]),
        "detections": Detections(X, MASK, 0.5),
        "model": ImageOutput(logits=X, hidden_states=(X, MASK)),
        "ordered": OrderedDict(b=X, a=3),
        "shape": X.shape,
        "name": "net",
    }


def test_output_names() -> None:
    assert [n for n, _ in flatten_output(X)[0]] == ["output"]
    assert [n for n, _ in flatten_output((X, [X, X]))[0]] == ["output[0]", "output[1][0]", "output[1][1]"]
    assert [n for n, _ in flatten_output(full_output())[0]] == [
        "output:logits", "output:boxes.where", "output:boxes.scores[0]", "output:detections.boxes",
        "output:detections.scores", "output:model.logits", "output:model.hidden_states[0]", "output:model.hidden_states[1]",
        "output:ordered.b",
    ]  # fmt: skip
    assert [n for n, _ in flatten_output(ImageOutput(logits=X))[0]] == ["output:logits"]
    assert [n for n, _ in flatten_output({0: X, 1: X})[0]] == ["output[0]", "output[1]"]
    assert [n for n, _ in flatten_output(torch.zeros(3, 4).max(1))[0]] == ["output[0]", "output[1]"]
    assert flatten_output(None)[0] == []


def test_output_is_rebuilt_as_it_was_with_other_tensors() -> None:
    tensors, spec = flatten_output(full_output())
    other = [torch.full_like(t, i) for i, (_, t) in enumerate(tensors)]
    made = rebuild_output(spec, other)
    assert [t is o for (_, t), o in zip(flatten_output(made)[0], other, strict=True)] == [True] * len(other)
    assert isinstance(made["boxes"], Boxes)
    assert made["boxes"].scores[1] is None
    assert type(made["ordered"]) is OrderedDict
    assert made["ordered"]["a"] == 3
    assert (made["detections"].scale, made["detections"].count) == (0.5, 4)
    assert isinstance(made["model"], ImageOutput)
    assert made["model"].logits is made["model"]["logits"] is other[5]
    assert made["model"].loss is None
    assert (made["shape"], made["name"]) == (X.shape, "net")


def test_equal_structures_have_equal_specs() -> None:
    a, b = flatten_output(full_output())[1], flatten_output(map_tensors(full_output(), lambda t: t + 1))[1]
    assert a == b
    assert a != flatten_output({"logits": X})[1]
    assert flatten_output((X, X))[1] != flatten_output([X, X])[1]


def test_a_wrong_number_of_tensors_is_refused() -> None:
    spec = flatten_output((X, None, X))[1]
    with pytest.raises(GraphError, match=r"2 tensors; 1 "):
        rebuild_output(spec, [X])
    with pytest.raises(GraphError, match="2 values"):
        rebuild(flatten((X, X))[1], [X])


class Opaque:
    tensor = X


@pytest.mark.parametrize("value", [Opaque(), {X.shape}, X.numpy(), (i for i in range(2))], ids=lambda v: type(v).__name__)
def test_an_output_that_cannot_be_taken_apart_is_named(value: Any) -> None:
    with pytest.raises(GraphError, match=rf"output:instances\[0\] .*{type(value).__name__}"):
        flatten_output({"instances": [value]})


# ---- structures


def test_mappings_come_back_in_their_own_class() -> None:
    grown = defaultdict(list, a=X)
    for value in (grown, Feature(a=X), MappingProxyType({"a": X}), OrderedDict(a=X)):
        found, spec = flatten(value)
        made = rebuild(spec, [leaf for _, leaf in found])
        assert type(made) is type(value)
        assert made["a"] is X
    again = rebuild(flatten(grown)[1], [X])
    assert again["new"] == []


def test_a_mapping_that_cannot_be_made_again_is_named() -> None:
    class Odd(dict):
        def __init__(self) -> None:
            super().__init__(a=X)

    with pytest.raises(GraphError, match="Odd"):
        rebuild(flatten(Odd())[1], [X])


def test_packed_sequences_and_modules() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(2, 2)])
    again = rebuild(flatten(packed)[1], [leaf for _, leaf in flatten(packed)[0]])
    assert isinstance(again, type(packed))
    assert torch.equal(again.data, packed.data)
    layer = nn.Linear(2, 2)
    assert flatten([layer])[0] == [((0,), layer)]


def test_float_tensors_are_found_everywhere() -> None:
    value = (X, torch.arange(3), Detections(MASK, X), ImageOutput(logits=MASK), Feature(a=[X]), "text", None)
    assert [t is o for t, o in zip(float_tensors(value), [X, MASK, X, MASK, X], strict=True)] == [True] * 5


def test_fresh_copies_tensors_only() -> None:
    weight, thing = nn.Parameter(torch.ones(2)), Opaque()
    made = fresh({"a": [weight], "b": Detections(X, MASK), "c": thing})
    assert made["a"][0] is not weight
    assert not made["a"][0].requires_grad
    assert made["b"].boxes.data_ptr() != X.data_ptr()
    assert made["c"] is thing
