"""ONNX files as modules: `read_onnx` gives one that runs the file's nodes by torch functions, one submodule a node."""

from qkit.graph.onnx_file.network import OnnxGrid, OnnxNetwork
from qkit.graph.onnx_file.reading import read_onnx

__all__ = ["OnnxGrid", "OnnxNetwork", "read_onnx"]
