"""ONNX Runtime: plans exported as files that it runs with integer kernels, and files that it ran as lanes."""

from qkit.engines.onnx.exporting import Exported, export
from qkit.engines.onnx.runtime import OnnxLane, lane

__all__ = ["Exported", "OnnxLane", "export", "lane"]
