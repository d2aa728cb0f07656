"""Targets before a ReLU: where one is negative, anything negative will do.

With z = y where y > 0, and min(guess, 0) elsewhere, (relu(y) − relu(ŷ))² ≤ (z − ŷ)² for every ŷ: a least squares fit
to z bounds what is lost behind the ReLU, and does not pay for what it would cut off anyway (the alternation of Zhang et
al. 2015, "Accelerating Very Deep Convolutional Networks for Classification and Detection", §3.2, as a majorization).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxslim.analysis.linear_layers import Array, Floats


@dataclass(frozen=True)
class Guess:
    """What a layer that a ReLU follows is about to compute: W·p + b."""

    weight: Floats
    """Shape (groups, O/groups, d)."""
    bias: Floats
    """Shape (O,)."""

    def rectified(self, targets: Array, rows: Array) -> Floats:
        """Return targets that a ReLU does not tell from ``targets``, as near as can be to what is about to be computed.

        Args:
            targets: y. Shape (O, positions).
            rows: patches. Shape (groups·d, positions).
        """
        groups, each, width = self.weight.shape
        made = np.einsum("god,gdr->gor", self.weight, rows.reshape(groups, width, -1), optimize=True)
        guessed = made.reshape(groups * each, -1) + self.bias[:, None]
        return np.where(targets > 0, targets, np.minimum(guessed, 0.0))
