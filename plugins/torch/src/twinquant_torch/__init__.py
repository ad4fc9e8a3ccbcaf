"""PyTorch for TwinQuant."""

from twinquant_torch.source import TorchModel

__all__ = ["TorchModel"]
