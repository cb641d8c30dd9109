"""What each checkpoint of the zoo is about."""

from __future__ import annotations

DATA = "handwritten digits (UCI Optical Recognition of Handwritten Digits, CC BY 4.0)"

#: Name -> description, written to the checkpoint's card and shown with the case.
DESCRIPTIONS: dict[str, str] = {
    "mobilenet_v2_lite": (
        "MobileNetV2 at width 0.25 with ReLU, trained on handwritten digits with SGD and weight decay on "
        "every parameter: it quantizes well."
    ),
    "mobilenet_v2_hostile": (
        "The same MobileNetV2, trained as quantization guidelines warn against: Adam at a large rate, no weight "
        "decay. As good in float and in 16 bits, while 8 bits with one weight scale per tensor lose most of it."
    ),
    "resnet_small": (
        "ResNet-18's blocks at 12 to 96 channels, trained on handwritten digits: residual joins and pooling; it quantizes well."
    ),
    "vgg_small": (
        "VGG with batch norm at 16 to 96 channels, trained on handwritten digits: "
        "a plain chain of 3×3 convolutions; it quantizes well."
    ),
    "inception_small": (
        "Four of GoogLeNet's Inception modules at 80 to 256 channels, trained on handwritten digits: "
        "concatenations of four branches; it quantizes well."
    ),
    "deit_small": (
        "A vision transformer of DeiT's shape at 64 channels, trained on handwritten digits: 8×8 patches, a class token, four "
        "blocks of layer norm, attention and GELU."
    ),
    "swin_small": (
        "A transformer of Swin's shape at 32 and 64 channels, trained on handwritten digits: attention in shifted windows with a "
        "mask and relative positions, patches merged once."
    ),
    "mobilevit_small": (
        "A hybrid of MobileViT's shape, trained on handwritten digits: depthwise convolutions with SiLU, and transformers over "
        "unfolded patches between them."
    ),
}
