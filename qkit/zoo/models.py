"""torchvision architectures at a small width, for images of 32×32."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn

from qkit.errors import QkitError
from qkit.vision import load_torchvision
from qkit.zoo.attention import deit_small, mobilevit_small, swin_small

MOBILENET_WIDTH = 0.25
RESNET_PLANES = (12, 24, 48, 96)
VGG_LAYERS = (16, "M", 32, 32, "M", 64, 64, "M", 96, 96)
VGG_CLASSIFIER = 64
INCEPTION_STEM = 16
#: Module -> the pool in front of it.
INCEPTION_POOLS = {"inception3a": "maxpool2", "inception4a": "maxpool3"}
#: Of each Inception module: 1×1, before and of the 3×3, before and of the second 3×3, after the pool.
INCEPTION_WIDTHS = {
    "inception3a": (16, 16, 32, 8, 16, 16),
    "inception3b": (32, 24, 48, 12, 24, 24),
    "inception4a": (48, 32, 64, 16, 32, 32),
    "inception4b": (64, 48, 96, 16, 48, 48),
}


def mobilenet_v2_lite(num_classes: int = 10) -> nn.Module:
    """Torchvision's MobileNetV2 at width 0.25, stem stride 1, with ReLU in place of every ReLU6.

    ReLU is what integer engines fuse for free, and what ranges of depthwise layers are not bounded by. Module
    paths and state dict keys are those of ``torchvision.models.mobilenet_v2``; 51 convolutions, 17 of them
    depthwise.

    Input (N, 3, 32, 32), output (N, num_classes) logits.
    """
    models = load_torchvision().models
    model: nn.Module = models.MobileNetV2(num_classes=num_classes, width_mult=MOBILENET_WIDTH)
    stem = model.get_submodule("features.0.0")
    assert isinstance(stem, nn.Conv2d)
    stem.stride = (1, 1)
    _replace_relu6(model)
    return model


def resnet_small(num_classes: int = 10) -> nn.Module:
    """Torchvision's ResNet with ResNet-18's blocks at 12, 24, 48 and 96 planes, and a 3×3 stem of stride 1.

    Module paths and state dict keys are those of ``torchvision.models.resnet18``.

    Input (N, 3, 32, 32), output (N, num_classes) logits.
    """
    resnet = load_torchvision().models.resnet
    model: nn.Module = resnet.ResNet(resnet.BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
    stem = RESNET_PLANES[0]
    model.conv1 = nn.Conv2d(3, stem, kernel_size=3, padding=1, bias=False)
    model.bn1 = nn.BatchNorm2d(stem)
    inputs = stem
    for stage, planes in enumerate(RESNET_PLANES):
        blocks = [_basic_block(inputs if i == 0 else planes, planes, stride=2 if stage and not i else 1) for i in range(2)]
        setattr(model, f"layer{stage + 1}", nn.Sequential(*blocks))
        inputs = planes
    model.fc = nn.Linear(inputs, num_classes)
    _initialize(model)
    return model


def vgg_small(num_classes: int = 10) -> nn.Module:
    """Torchvision's VGG with batch norm at 16 to 96 channels, pooled to one pixel before a small classifier.

    A plain chain: no joins, no depthwise layers. Seven convolutions with biases, two linear layers.

    Input (N, 3, 32, 32), output (N, num_classes) logits.
    """
    vgg = load_torchvision().models.vgg
    with torch.device("meta"):  # every part of it is replaced, and its classifier would take half a gigabyte
        model: nn.Module = vgg.VGG(nn.Identity(), init_weights=False)
    model.features = vgg.make_layers(VGG_LAYERS, batch_norm=True)
    model.avgpool = nn.AdaptiveAvgPool2d((1, 1))
    channels = VGG_LAYERS[-1]
    assert isinstance(channels, int)
    model.classifier = nn.Sequential(
        nn.Linear(channels, VGG_CLASSIFIER), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(VGG_CLASSIFIER, num_classes)
    )
    _initialize(model)
    return model


def inception_small(num_classes: int = 10) -> nn.Module:
    """Four Inception modules of torchvision's GoogLeNet at 80 to 256 channels behind a 3×3 stem of stride 1.

    Every module concatenates four branches, one of them behind a max pool. Module names are GoogLeNet's where it
    has the same part.

    Input (N, 3, 32, 32), output (N, num_classes) logits.
    """
    load_torchvision()
    # as an attribute of torchvision.models, the module is hidden by the function of its name
    googlenet = importlib.import_module("torchvision.models.googlenet")
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv1"] = googlenet.BasicConv2d(3, INCEPTION_STEM, kernel_size=3, padding=1)
    inputs = INCEPTION_STEM
    for name, widths in INCEPTION_WIDTHS.items():
        if pool := INCEPTION_POOLS.get(name):
            parts[pool] = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
        parts[name] = googlenet.Inception(inputs, *widths)
        inputs = widths[0] + widths[2] + widths[4] + widths[5]
    parts["avgpool"] = nn.AdaptiveAvgPool2d((1, 1))
    parts["flatten"] = nn.Flatten()
    parts["dropout"] = nn.Dropout(0.2)
    parts["fc"] = nn.Linear(inputs, num_classes)
    model = nn.Sequential(parts)
    _initialize(model)
    return model


#: Name of a checkpoint -> builder of its architecture, with random weights in training mode.
BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2_lite": mobilenet_v2_lite,
    "mobilenet_v2_hostile": mobilenet_v2_lite,
    "resnet_small": resnet_small,
    "vgg_small": vgg_small,
    "inception_small": inception_small,
    "deit_small": deit_small,
    "swin_small": swin_small,
    "mobilevit_small": mobilevit_small,
}


def names() -> tuple[str, ...]:
    """Names that `load` and ``python -m qkit.zoo train`` take."""
    return tuple(BUILDERS)


def build(name: str, seed: int = 0) -> nn.Module:
    """Build `name` with random weights from `seed`; the global random generator is left as it was.

    Raises
    ------
    QkitError
        If there is no such name; the known ones are listed.
    """
    if name not in BUILDERS:
        raise QkitError(f"There is no model {name!r} in the zoo; there are {', '.join(BUILDERS)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BUILDERS[name]()


def _replace_relu6(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(parent, name, nn.ReLU(inplace=True))


def _initialize(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _basic_block(inputs: int, planes: int, stride: int) -> nn.Module:
    downsample = None
    if stride != 1 or inputs != planes:
        downsample = nn.Sequential(nn.Conv2d(inputs, planes, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(planes))
    block: nn.Module = load_torchvision().models.resnet.BasicBlock(inputs, planes, stride, downsample)
    return block
