"""ONNX files as modules: `read_onnx` gives one that runs the file's nodes by torch functions, one submodule a node."""

from qkit.graph.onnx_file.file_reading import read_onnx
from qkit.graph.onnx_file.network import OnnxGrid, OnnxNetwork

__all__ = ["OnnxGrid", "OnnxNetwork", "read_onnx"]
