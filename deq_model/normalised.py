"""Linear maps whose weights are split in a length and a direction (arXiv 1602.07868)."""

import torch
from torch import Tensor, nn


class WeightNormLinear(nn.Module):
    """Parameters of a linear map, ``weight = g · v / ‖v‖`` with the norm over each output row.

    It only stores and folds: f folds its weights once per block and then calls plain matrix
    products, so that the norm is not computed again at every solver step.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, weight_norm: bool
    ) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))
        self.weight_g = nn.Parameter(torch.empty(out_features, 1)) if weight_norm else None
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def reset(self, *, std: float, generator: torch.Generator | None = None) -> None:
        """Draws the direction from N(0, std²), sets the length to match and the bias to zero."""
        with torch.no_grad():
            self.weight_v.normal_(0.0, std, generator=generator)
            if self.weight_g is not None:
                self.weight_g.copy_(self.weight_v.norm(dim=1, keepdim=True))
            if self.bias is not None:
                self.bias.zero_()

    def folded(self) -> Tensor:
        """The weight, ``(out_features, in_features)``, differentiable in its parts."""
        if self.weight_g is None:
            return self.weight_v
        length: Tensor = self.weight_v.norm(dim=1, keepdim=True)
        return self.weight_v * (self.weight_g / length)
