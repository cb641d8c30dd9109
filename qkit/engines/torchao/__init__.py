"""torchao's PT2E flow on a plan's grids, and networks that it or torch.fx quantized as lanes."""

from qkit.engines.torchao.flow import converted, lane, model, prepared, quantizer

__all__ = ["converted", "lane", "model", "prepared", "quantizer"]
