"""Networks as people bring them: timm, torchvision, transformers, ONNX files, each through the front door."""
