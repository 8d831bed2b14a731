"""CAS, the second part of T2DR's second tier: a prediction from each modality, and the weights of the modalities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saccade.common.checks import check_share
from saccade.modules.multimodal.layers.perceptron import mlp

_LIMIT = 5.0  # largest absolute logarithm of an expected error


class CAS(nn.Module):
    """Capability-aware scorer: a prediction from each modality, and weights of the modalities that sum to 1.

    Name and purpose are those of T2DR (Findings of ACL 2025); the formula is ours. A small network for each modality
    computes its own prediction y_m. A shared network reads the modality's vector, its observed fraction and whether it
    is present at all, and estimates the error e_m of that prediction. It is trained with log e_m + error / e_m, which
    is smallest if e_m is the mean error of such vectors. The weights are those of independent measurements,
    proportional to the inverse variance: 1 / e_m^2 for absolute errors, which grow with the deviation, and 1 / e_m for
    cross-entropies, which grow with its square.

    Args:
        width: Features of a vector.
        outputs: 1 for regression, the number of classes for classification.
        modalities: Number of modalities.
        filled_weight: Multiplier of the weight of a missing modality, whose vector was filled, 0 to 1.
        uniform: Give all modalities the same weight, for comparison.

    Raises:
        ValueError: `filled_weight` is out of range.
    """

    def __init__(
        self, width: int, outputs: int = 1, modalities: int = 3, filled_weight: float = 1.0, uniform: bool = False
    ) -> None:
        super().__init__()
        check_share("filled_weight", filled_weight)
        self.filled_weight, self.uniform = filled_weight, uniform
        self.results = nn.ModuleList(mlp(width, width, outputs) for _ in range(modalities))
        if uniform:
            return
        self.power = 2.0 if outputs == 1 else 1.0  # exponent that converts an expected error to a variance
        self.identity = nn.Parameter(0.02 * torch.randn(modalities, width))
        self.expect = mlp(2 * width + 2, width, 1)
        self.bias = nn.Parameter(torch.zeros(modalities))

    def forward(self, vectors: Tensor, observed: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute predictions and weights.

        Args:
            vectors: One vector for each modality [B, 3, width].
            observed: Observed fraction of each modality, 0 to 1 [B, 3].
            present: True for modalities that are not missing as a whole, bool [B, 3].

        Returns:
            Predictions from each modality [B, 3, outputs], weights [B, 3], and logarithms of expected errors [B, 3].
        """
        results = torch.stack([result(vectors[:, place]) for place, result in enumerate(self.results)], 1)
        if self.uniform:
            return results, torch.full_like(observed, 1 / vectors.shape[1]), torch.zeros_like(observed)
        known = torch.stack([observed, present.to(observed.dtype)], -1).to(vectors.dtype)
        # detached: the scorer's loss does not train the encoders
        read = torch.cat([vectors.detach(), self.identity.expand_as(vectors), known], -1)
        expected = (self.expect(read).squeeze(-1) + self.bias).clamp(-_LIMIT, _LIMIT)
        cap = torch.where(present | ~present.any(-1, keepdim=True), 1.0, self.filled_weight).to(expected.dtype)
        weights = (-self.power * expected).softmax(-1) * cap
        return results, weights / weights.sum(-1, keepdim=True).clamp(min=1e-8), expected

    def loss(self, expected: Tensor, errors: Tensor) -> Tensor:
        """Compute the loss of the expected errors.

        Args:
            expected: Logarithms of expected errors, from `forward` [B, 3].
            errors: Error of each modality's own prediction, in units of the label or in nats [B, 3]; they get no
                gradient.

        Returns:
            Mean of log e + error / e over samples and modalities, a scalar; 0 with uniform weights.
        """
        if self.uniform:
            return errors.sum() * 0
        return (expected + errors.detach() * (-expected).exp()).mean()
