"""One norm in the forms that people bring it in: the same numbers, another class."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F


class FunctionalBatchNorm2d(nn.BatchNorm2d):
    """A subclass that calls ``F.batch_norm`` itself, as code bases do that add something to their norm."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W) with the running statistics, or with the batch's own in training mode."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum or 0.0, self.eps
        )


def batch_norm(model: nn.Module) -> nn.Module:
    """The model as it is, copied."""
    return copy.deepcopy(model)


def sync_batch_norm(model: nn.Module) -> nn.Module:
    """A copy whose norms are `torch.nn.SyncBatchNorm`."""
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    return converted


def functional_batch_norm(model: nn.Module) -> nn.Module:
    """A copy whose norms are a subclass that calls ``F.batch_norm``."""

    def make(norm: nn.BatchNorm2d) -> nn.Module:
        made = FunctionalBatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine)
        made.load_state_dict(norm.state_dict())
        return made

    return _replaced(copy.deepcopy(model), make)


def frozen_batch_norm(model: nn.Module) -> nn.Module:
    """A copy whose norms are torchvision's `FrozenBatchNorm2d`: buffers, and ``x * scale + bias`` in forward."""
    from qkit.vision import load_torchvision

    load_torchvision()
    from torchvision.ops import FrozenBatchNorm2d

    def make(norm: nn.BatchNorm2d) -> nn.Module:
        made: nn.Module = FrozenBatchNorm2d(norm.num_features, norm.eps)
        made.load_state_dict({name: value for name, value in norm.state_dict().items() if name != "num_batches_tracked"})
        return made

    return _replaced(copy.deepcopy(model), make)


#: The forms by name; each takes a model with `nn.BatchNorm2d` and returns a copy of it.
FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "BatchNorm2d": batch_norm,
    "SyncBatchNorm": sync_batch_norm,
    "F.batch_norm in a subclass": functional_batch_norm,
    "FrozenBatchNorm2d": frozen_batch_norm,
}


def _replaced(model: nn.Module, make: Callable[[nn.BatchNorm2d], nn.Module]) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, make(child).train(child.training))
    return model
