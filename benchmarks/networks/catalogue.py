"""The networks: one of each family of timm, torchvision's tasks, transformers' random configurations, ONNX files.

Every network is built from its package with random weights (ONNX files bring their own), in a size that a small
machine runs in seconds. Packages are imported when a network is built, never when the list is read.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.networks.weights import settle

#: What a network mostly is: it decides which integer share is asked of it.
KINDS = ("convolutional", "hybrid", "transformer")


@dataclass(frozen=True)
class Network:
    """One network of the benchmark.

    Attributes
    ----------
    name
        Unique: ``package/architecture``; also the name of its file of results.
    kind
        One of :data:`KINDS`.
    shape
        The shape of one image, without the batch: ``(3, 64, 64)``.
    make
        Builds the network: a module, or the path of an ONNX file.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    make: Callable[[], nn.Module | Path] = field(repr=False, compare=False)

    @property
    def package(self) -> str:
        """Where the network comes from: ``timm``, ``torchvision``, ``transformers``, ``onnx``."""
        return self.name.split("/", 1)[0]


def networks(package: str | None = None) -> list[Network]:
    """Return the networks of one package, or of all.

    Parameters
    ----------
    package
        ``timm``, ``torchvision``, ``transformers`` or ``onnx``; ``None`` takes all of them.

    Raises
    ------
    KeyError
        If there is no such package.
    """
    lists = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers, "onnx": _onnx}
    chosen = lists.values() if package is None else [lists[package]]
    return [network for make in chosen for network in make()]


# timm: (architecture, size, arguments), a line a family. Where nothing is said, 64 pixels and no arguments.

_TIMM_CONVOLUTIONAL: tuple[tuple[Any, ...], ...] = (
    ("resnet18",),
    ("resnet26t",),
    ("resnetblur18",),
    ("wide_resnet50_2",),
    ("resnext50_32x4d",),
    ("resnest14d",),
    ("res2net50_26w_4s",),
    ("regnetx_002",),
    ("regnety_002",),
    ("regnetz_b16",),
    ("densenet121",),
    ("dla34",),
    ("dpn68",),
    ("vgg11_bn",),
    ("hrnet_w18_small",),
    ("inception_v3", 96),
    ("inception_v4", 160),
    ("inception_resnet_v2", 96),
    ("xception41",),
    ("nasnetalarge", 96),
    ("pnasnet5large", 96),
    ("efficientnet_b0",),
    ("efficientnet_lite0",),
    ("tf_efficientnet_b0",),
    ("tf_efficientnetv2_b0",),
    ("efficientnetv2_rw_t",),
    ("mixnet_s",),
    ("mobilenetv1_100",),
    ("mobilenetv2_100",),
    ("mobilenetv3_small_100",),
    ("mobilenetv4_conv_small",),
    ("mnasnet_100",),
    ("spnasnet_100",),
    ("hardcorenas_a",),
    ("fbnetc_100",),
    ("fbnetv3_b",),
    ("tinynet_e",),
    ("lcnet_050",),
    ("ghostnet_100",),
    ("ghostnetv2_100",),
    ("ghostnetv3_100",),
    ("mobileone_s0",),
    ("repvgg_a0",),
    ("repghostnet_050",),
    ("rexnet_100",),
    ("selecsls42b",),
    ("skresnet18",),
    ("seresnet18",),
    ("legacy_seresnet18",),
    ("ecaresnet26t",),
    ("gcresnet33ts",),
    ("cspresnet50",),
    ("cspdarknet53",),
    ("darknet53",),
    ("ese_vovnet19b_dw",),
    ("nfnet_l0",),
    ("dm_nfnet_f0", 96),
    ("nf_resnet26",),
    ("resnetv2_50",),
    ("resnetv2_50x1_bit",),
    ("gernet_s",),
    ("eca_resnet33ts",),
    ("hgnet_tiny",),
    ("hgnetv2_b0",),
    ("convnext_atto",),
    ("convnextv2_atto",),
    ("convmixer_768_32",),
    ("poolformer_s12",),
    ("poolformerv2_s12",),
    ("convformer_s18", 96),
    ("focalnet_tiny_srf", 96),
    ("inception_next_atto", 96),
    ("mambaout_femto", 96),
    ("starnet_s050",),
    ("rdnet_tiny", 96),
    ("fasternet_t0",),
    ("haloregnetz_b", 224),
    ("csatv2", 128),
)
_TIMM_HYBRID: tuple[tuple[Any, ...], ...] = (
    ("mobilenetv4_hybrid_medium", 128),
    ("repvit_m0_9",),
    ("fastvit_t8", 128),
    ("mobilevit_xxs", 128),
    ("mobilevitv2_050", 128),
    ("efficientformer_l1", 224),
    ("efficientformerv2_s0", 224),
    ("efficientvit_b0",),
    ("efficientvit_m0", 224),
    ("edgenext_xx_small", 128),
    ("caformer_s18", 96),
    ("botnet26t_256", 256),
    ("halonet26t", 256),
    ("lambda_resnet26t", 256),
    ("sehalonet33ts", 256),
    ("visformer_tiny", 224),
    ("coatnet_nano_rw_224", 224),
    ("maxvit_nano_rw_256", 256),
    ("levit_128s", 224),
    ("levit_conv_128s", 224),
    ("nextvit_small", 128),
    ("tiny_vit_5m_224", 224),
    ("coat_lite_tiny", 224),
    ("shvit_s1", 128),
    ("swiftformer_xs", 224),
    ("efficientvim_m1", 224),
    ("vit_tiny_r_s16_p8_224", 224),
    ("sequencer2d_s", 224),
)
_TIMM_TRANSFORMER: tuple[tuple[Any, ...], ...] = (
    ("vit_tiny_patch16_224", 96, {"img_size": 96}),
    ("deit_tiny_distilled_patch16_224", 96, {"img_size": 96}),
    ("deit3_small_patch16_224", 96, {"img_size": 96}),
    ("beit_base_patch16_224", 96, {"img_size": 96, "depth": 4}),
    ("eva02_tiny_patch14_224", 224, {"depth": 6}),
    ("flexivit_small", 96, {"img_size": 96}),
    ("cait_xxs24_224", 224, {"depth": 6}),
    ("xcit_nano_12_p16_224", 224),
    ("crossvit_9_240", 240),
    ("twins_pcpvt_small", 224),
    ("twins_svt_small", 224),
    ("pvt_v2_b0", 96),
    ("pit_ti_224", 224),
    ("tnt_s_patch16_224", 224, {"depth": 4}),
    ("convit_tiny", 224, {"depth": 6}),
    ("swin_tiny_patch4_window7_224", 224),
    ("swinv2_tiny_window8_256", 256),
    ("swinv2_cr_tiny_ns_224", 224),
    ("davit_tiny", 224),
    ("gcvit_xxtiny", 224),
    ("hiera_tiny_224", 224),
    ("nest_tiny", 224),
    ("volo_d1_224", 224),
    ("mvitv2_tiny", 224),
    ("mixer_s32_224", 224),
    ("gmlp_ti16_224", 224),
    ("resmlp_12_224", 224),
    ("samvit_base_patch16", 256, {"img_size": 256, "depth": 3, "global_attn_indexes": (2,)}),
)


def _timm() -> list[Network]:
    listed: list[Network] = []
    groups = zip(KINDS, (_TIMM_CONVOLUTIONAL, _TIMM_HYBRID, _TIMM_TRANSFORMER), strict=True)
    for kind, group in groups:
        for architecture, *rest in group:
            size = rest[0] if rest else 64
            arguments = rest[1] if len(rest) > 1 else {}
            listed.append(Network(f"timm/{architecture}", kind, (3, size, size), _of_timm(architecture, arguments)))
    return listed


def _of_timm(architecture: str, arguments: dict[str, Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        _torchvision_module()
        module: nn.Module = importlib.import_module("timm").create_model(architecture, pretrained=False, **arguments)
        return module

    return make


def _torchvision_module() -> Any:
    """torchvision, also where its compiled operators do not load; timm and transformers import it themselves."""
    from qkit.vision import load_torchvision

    return load_torchvision()


# torchvision

_CLASSIFICATION: tuple[tuple[str, str, int], ...] = (
    ("alexnet", "convolutional", 96),
    ("convnext_tiny", "convolutional", 64),
    ("densenet121", "convolutional", 64),
    ("efficientnet_b0", "convolutional", 64),
    ("efficientnet_v2_s", "convolutional", 64),
    ("googlenet", "convolutional", 64),
    ("inception_v3", "convolutional", 96),
    ("maxvit_t", "hybrid", 224),
    ("mnasnet0_5", "convolutional", 64),
    ("mobilenet_v2", "convolutional", 64),
    ("mobilenet_v3_large", "convolutional", 64),
    ("mobilenet_v3_small", "convolutional", 64),
    ("regnet_x_400mf", "convolutional", 64),
    ("regnet_y_400mf", "convolutional", 64),
    ("resnet18", "convolutional", 64),
    ("resnet50", "convolutional", 64),
    ("resnext50_32x4d", "convolutional", 64),
    ("shufflenet_v2_x1_0", "convolutional", 64),
    ("squeezenet1_1", "convolutional", 64),
    ("swin_t", "transformer", 224),
    ("swin_v2_t", "transformer", 256),
    ("vgg11", "convolutional", 64),
    ("vgg11_bn", "convolutional", 64),
    ("vit_b_32", "transformer", 224),
    ("wide_resnet50_2", "convolutional", 64),
)
_SEGMENTATION: tuple[tuple[str, int], ...] = (
    ("fcn_resnet50", 64),
    ("deeplabv3_resnet50", 128),
    ("deeplabv3_mobilenet_v3_large", 64),
    ("lraspp_mobilenet_v3_large", 64),
)
_VIDEO: tuple[tuple[str, str, tuple[int, int, int]], ...] = (
    ("r3d_18", "convolutional", (8, 56, 56)),
    ("mc3_18", "convolutional", (8, 56, 56)),
    ("r2plus1d_18", "convolutional", (8, 56, 56)),
    ("s3d", "convolutional", (16, 224, 224)),
    ("mvit_v2_s", "transformer", (16, 224, 224)),
    ("swin3d_t", "transformer", (8, 64, 64)),
)
_DETECTION: tuple[tuple[str, int], ...] = (
    ("ssdlite320_mobilenet_v3_large", 320),
    ("ssd300_vgg16", 300),
    ("retinanet_resnet50_fpn", 128),
    ("retinanet_resnet50_fpn_v2", 128),
    ("fcos_resnet50_fpn", 128),
    ("fasterrcnn_mobilenet_v3_large_fpn", 128),
    ("fasterrcnn_resnet50_fpn", 128),
    ("maskrcnn_resnet50_fpn", 128),
    ("keypointrcnn_resnet50_fpn", 128),
)


def _torchvision() -> list[Network]:
    listed = [
        Network(f"torchvision/{name}", kind, (3, size, size), _of_torchvision("", name)) for name, kind, size in _CLASSIFICATION
    ]
    listed += [
        Network(f"torchvision/{name}", "convolutional", (3, size, size), _of_torchvision("segmentation", name))
        for name, size in _SEGMENTATION
    ]
    listed += [Network(f"torchvision/{name}", kind, (3, *sizes), _of_torchvision("video", name)) for name, kind, sizes in _VIDEO]
    listed += [Network(f"torchvision/{name}", "convolutional", (3, size, size), _detector(name)) for name, size in _DETECTION]
    return listed


def _of_torchvision(task: str, name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        models = importlib.import_module(f"{_torchvision_module().__name__}.models{'.' + task if task else ''}")
        arguments: dict[str, Any] = {"weights": None}
        if task == "segmentation":
            arguments["weights_backbone"] = None
        if name in ("googlenet", "inception_v3"):
            arguments["init_weights"] = False
        module: nn.Module = getattr(models, name)(**arguments)
        return module

    return make


class BackboneAndHeads(nn.Module):
    """A detector of torchvision without its list-of-images transform, anchors and suppression: what an engine runs.

    Parameters
    ----------
    detector
        A network of ``torchvision.models.detection``: with a ``head`` (SSD, RetinaNet, FCOS), or with an ``rpn``
        (Faster, Mask and Keypoint R-CNN, whose region heads work on crops that no fixed graph has: left out).
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone: nn.Module = detector.backbone
        self.head: nn.Module = detector.head if hasattr(detector, "head") else detector.rpn.head

    def forward(self, x: torch.Tensor) -> Any:
        """Return the heads' maps, ``{name: tensor}`` or lists of tensors, as the detector's head gives them."""
        return self.head(list(self.backbone(x).values()))


def _detector(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        models = importlib.import_module(f"{_torchvision_module().__name__}.models.detection")
        return BackboneAndHeads(getattr(models, name)(weights=None, weights_backbone=None))

    return make


# transformers, small random configurations

_SMALL: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
_TRANSFORMERS: tuple[tuple[str, str, int, str, dict[str, Any]], ...] = (
    ("vit", "transformer", 64, "ViTForImageClassification", {**_SMALL, "image_size": 64, "patch_size": 8}),
    ("vit_model", "transformer", 64, "ViTModel", {**_SMALL, "image_size": 64, "patch_size": 8}),
    ("deit", "transformer", 64, "DeiTForImageClassification", {**_SMALL, "image_size": 64, "patch_size": 8}),
    (
        "mobilevit",
        "hybrid",
        128,
        "MobileViTForImageClassification",
        {"image_size": 128, "hidden_sizes": [48, 64, 80], "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 160]},
    ),
    ("mobilevit_segmentation", "hybrid", 128, "MobileViTForSemanticSegmentation", {"image_size": 128}),
    (
        "segformer",
        "transformer",
        128,
        "SegformerForSemanticSegmentation",
        {"hidden_sizes": [16, 32, 64, 96], "depths": [1, 1, 1, 1], "decoder_hidden_size": 64},
    ),
    (
        "resnet",
        "convolutional",
        64,
        "ResNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1]},
    ),
    ("mobilenet_v2", "convolutional", 64, "MobileNetV2ForImageClassification", {"depth_multiplier": 0.5}),
    ("convnext", "convolutional", 64, "ConvNextForImageClassification", {"hidden_sizes": [16, 32, 64, 96]}),
    ("detr_backbone", "convolutional", 96, "DetrModel", {}),
    ("detr_encoder", "transformer", 96, "DetrModel", {}),
)


def _transformers() -> list[Network]:
    return [
        Network(f"transformers/{name}", kind, (3, size, size), _of_transformers(name, class_name, arguments))
        for name, kind, size, class_name, arguments in _TRANSFORMERS
    ]


def _of_transformers(name: str, class_name: str, arguments: dict[str, Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        _torchvision_module()
        library = importlib.import_module("transformers")
        if class_name == "DetrModel":
            detr = _detr(library)
            return DetrBackbone(detr) if name == "detr_backbone" else DetrEncoder(detr)
        model_class = getattr(library, class_name)
        module: nn.Module = model_class(model_class.config_class(**arguments))
        return module

    return make


def _detr(library: Any) -> nn.Module:
    """A small DETR: ResNet-18's shape of backbone with transformers' frozen batch norms, two encoder layers."""
    resnet = library.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[32, 64, 96, 128],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    arguments = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4}
    config = library.DetrConfig(
        backbone_config=resnet, encoder_ffn_dim=128, decoder_ffn_dim=128, decoder_attention_heads=4, **arguments
    )
    module: nn.Module = library.DetrModel(config)
    return module


class DetrBackbone(nn.Module):
    """DETR's backbone with its frozen batch norms: an image to its last feature map."""

    def __init__(self, detr: Any) -> None:
        super().__init__()
        self.backbone: nn.Module = detr.backbone

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the last stage's map, (batch, channels, height, width)."""
        mask = torch.ones(pixel_values.shape[0], *pixel_values.shape[2:])
        maps: torch.Tensor = self.backbone(pixel_values, mask)[-1][0]
        return maps


class DetrEncoder(nn.Module):
    """DETR up to its encoder, for whole images: nothing is masked, so the position embedding is a constant."""

    def __init__(self, detr: Any) -> None:
        super().__init__()
        self.backbone: nn.Module = detr.backbone
        self.projection: nn.Module = detr.input_projection
        self.position_embedding: nn.Module = detr.position_embedding
        self.encoder: nn.Module = detr.encoder

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the encoder's last hidden state, (batch, height * width, width of the model)."""
        mask = torch.ones(pixel_values.shape[0], *pixel_values.shape[2:])
        features, mask = self.backbone(pixel_values, mask)[-1]
        tokens = self.projection(features).flatten(2).transpose(1, 2)
        positions = self.position_embedding(
            shape=features.shape, device=pixel_values.device, dtype=pixel_values.dtype, mask=torch.ones_like(mask)
        )
        encoded = self.encoder(inputs_embeds=tokens, spatial_position_embeddings=positions.flatten(2).transpose(1, 2))
        hidden: torch.Tensor = encoded.last_hidden_state
        return hidden


# ONNX files: what two packages ship, and torchvision's networks as torch.onnx writes them

_FILES: tuple[tuple[str, str, str, tuple[int, int, int]], ...] = (
    ("ppocr_detector", "rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx", (3, 160, 160)),
    ("ppocr_classifier", "rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", (3, 48, 192)),
    ("ppocr_recognizer", "rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx", (3, 48, 160)),
    ("nudenet_320n", "nudenet", "320n.onnx", (3, 320, 320)),
)
#: torchvision's networks as both of torch's exporters write them: the name, whether by torch.export, and the opset.
_EXPORTED: tuple[tuple[str, bool, int], ...] = (
    ("mobilenet_v2", True, 20),
    ("resnet18", True, 18),
    ("resnet18", False, 9),
    ("efficientnet_b0", True, 20),
    ("mobilenet_v3_small", False, 17),
    ("shufflenet_v2_x1_0", True, 20),
    ("densenet121", True, 20),
    ("convnext_tiny", True, 20),
    ("vit_b_32", True, 20),
)


#: Where exported files are, for as long as the process lives.
_folders: list[tempfile.TemporaryDirectory[str]] = []


def _onnx() -> list[Network]:
    files = [Network(f"onnx/{name}", "convolutional", shape, _file(package, path)) for name, package, path, shape in _FILES]
    exports = [_exported(*entry) for entry in _EXPORTED]
    return files + exports


def _exported(name: str, dynamo: bool, opset: int) -> Network:
    size = 224 if name.startswith("vit") else 64
    kind = "transformer" if name.startswith("vit") else "convolutional"
    title = f"onnx/torchvision_{name}_opset{opset}"
    return Network(title, kind, (3, size, size), _export(name, (3, size, size), dynamo, opset))


def _file(package: str, path: str) -> Callable[[], Path]:
    def make() -> Path:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return Path(spec.submodule_search_locations[0]) / path

    return make


def _export(name: str, shape: tuple[int, ...], dynamo: bool, opset: int) -> Callable[[], Path]:
    def make() -> Path:
        module = settle(_of_torchvision("", name)(), shape)
        folder = tempfile.TemporaryDirectory(prefix="qkit-networks-")
        _folders.append(folder)
        file = Path(folder.name) / f"{name}.onnx"
        example = (torch.zeros(2, *shape),)
        batch: dict[str, Any] = {"dynamic_axes": {"images": [0]}}
        if dynamo:
            batch = {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},), "external_data": False}
        torch.onnx.export(
            module, example, file, dynamo=dynamo, opset_version=opset, input_names=["images"], verbose=False, **batch
        )
        return file

    return make
