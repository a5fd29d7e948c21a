"""Cached answers against live ones. Letters: N samples, C channels, H, W height and width."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.cache.encodings import Encoding


class AnswerErrors:
    """Errors of one answer (logits or a level) over many batches.

    Of lowrank the direction at each position is compared, as nothing else is kept: both sides are brought to length 1.
    """

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.worst, self.error_sum, self.size_sum, self.count = 0.0, 0.0, 0.0, 0
        self.cosine_sum, self.positions = 0.0, 0

    def add(self, cached_NCHW: Tensor, live_NCHW: Tensor) -> None:
        """Compare a batch, both float32."""
        cosine_NHW = F.cosine_similarity(cached_NCHW.double(), live_NCHW.double(), dim=1)
        seen_NHW = live_NCHW.abs().amax(1) > 0  # a position of zeros has no direction
        self.cosine_sum += cosine_NHW[seen_NHW].sum().item()
        self.positions += int(seen_NHW.sum())
        if self.encoding.kind == "lowrank":
            cached_NCHW, live_NCHW = F.normalize(cached_NCHW, dim=1), F.normalize(live_NCHW, dim=1)
        error = (cached_NCHW - live_NCHW).abs()
        self.worst = float(np.maximum(self.worst, error.max().item()))  # NaN, too
        self.error_sum += error.double().sum().item()
        self.size_sum += live_NCHW.abs().double().sum().item()
        self.count += error.numel()

    def to_dict(self) -> dict[str, float | str]:
        """encoding, largest and mean absolute error, mean error over mean magnitude, mean cosine of a position's channels."""
        return {
            "encoding": self.encoding.kind,
            "max_abs": self.worst,
            "mean_abs": self.error_sum / self.count,
            "relative": self.error_sum / self.size_sum if self.size_sum else 0.0,
            "cosine": self.cosine_sum / self.positions if self.positions else 1.0,
        }


class ScoreErrors:
    """What the teacher's classes lose: divergence at a temperature, and how often the best class is another one."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.divergence_sum, self.agreed, self.positions = 0.0, 0, 0

    def add(self, cached_NKHW: Tensor, live_NKHW: Tensor) -> None:
        """Compare a batch of scores, both float32."""
        cached, live = (
            torch.log_softmax(x.double() / self.temperature, 1) for x in (cached_NKHW, live_NKHW)
        )
        self.divergence_sum += F.kl_div(cached, live, reduction="sum", log_target=True).item()
        self.agreed += int((cached_NKHW.argmax(1) == live_NKHW.argmax(1)).sum())
        self.positions += live_NKHW[:, 0].numel()

    def to_dict(self) -> dict[str, float]:
        """KL(live || cached) in nats, mean over positions, and the share of positions with the same best class."""
        return {
            "kl": max(self.divergence_sum / self.positions, 0.0),
            "temperature": self.temperature,
            "agreement": self.agreed / self.positions,
        }
