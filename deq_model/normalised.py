"""Linear maps whose weights are split in a length and a direction.

By rows (weight normalisation, arXiv 1602.07868), or as a whole by the largest singular value
(spectral normalisation, arXiv 1802.05957, here exact: no power iteration and so no state).
"""

import torch
from torch import Tensor, nn

from deq_model.config import Norm


class NormalisedLinear(nn.Module):
    """Parameters of a linear map: ``weight = g · v / size(v)``.

    With weight_norm a size is the length of an output row, one g each; with spectral_norm it is
    the largest singular value of the matrix, one g for all of it; with none the weight is v.

    It only stores and folds: f folds its weights once per block and then calls plain matrix
    products, so that the norm is not computed again at every solver step.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        norm: Norm = "weight_norm",
        clip: float = 0.0,
        target: float = 0.0,
    ) -> None:
        """Makes the parameters, uninitialised.

        Args:
            in_features: of the map.
            out_features: of the map.
            bias: whether there is one.
            norm: which size the weights are split by.
            clip: upper bound of ``|g|``, 0 for none.
            target: the one value of g, which is then no parameter; 0 where it is learned.
        """
        super().__init__()
        self.norm, self.clip, self.target = norm, clip, target
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))
        lengths = out_features if norm == "weight_norm" else 1
        learned = norm != "none" and not target
        self.weight_g = nn.Parameter(torch.empty(lengths, 1)) if learned else None
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    @torch.no_grad()
    def match_length(self) -> None:
        """Sets g, where it is learned, so that the weight is v, or as near as ``clip`` allows."""
        if self.weight_g is not None:
            self.weight_g.copy_(self._size())
            self.clip_length()

    @torch.no_grad()
    def clip_length(self) -> None:
        """Brings a g that an optimiser has taken beyond ``clip`` back to it.

        ``folded`` clamps as well; but there a g beyond the bound gets no gradient, and would never
        come back.
        """
        if self.weight_g is not None and self.clip:
            self.weight_g.clamp_(-self.clip, self.clip)

    def folded(self) -> Tensor:
        """The weight, ``(out_features, in_features)``, differentiable in its parts."""
        if self.norm == "none":
            return self.weight_v
        size = self._size()
        if self.weight_g is None:
            return self.weight_v * (self.target / size)
        length = self.weight_g.clamp(-self.clip, self.clip) if self.clip else self.weight_g
        return self.weight_v * (length / size)

    def _size(self) -> Tensor:
        """What the weights are split by: ``(out_features, 1)`` of rows, or ``(1, 1)``."""
        if self.norm == "spectral_norm":
            return largest_singular_value(self.weight_v)
        size: Tensor = self.weight_v.norm(dim=1, keepdim=True)
        return size


def largest_singular_value(matrix: Tensor) -> Tensor:
    """``√λ_max`` of the smaller of ``A Aᵀ`` and ``Aᵀ A``: ``(1, 1)``, differentiable."""
    exact = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    wide = exact if exact.shape[0] <= exact.shape[1] else exact.T
    largest: Tensor = torch.linalg.eigvalsh(wide @ wide.T)[-1]
    return largest.sqrt().to(matrix.dtype).view(1, 1)
