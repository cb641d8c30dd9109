"""Rescale a network's channels: the same function in float, a worse one on an integer grid."""
from torch import nn

def rescale_channels(model: nn.Module, spread: float, seed: int = 0) -> None:
    pass
