"""The weighted sum of the terms, in one pass over pixels and one over features.

Letters: N batch, K classes, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from kdcache.config import VOID
from kdcache.losses.features import feature_loss
from kdcache.losses.pixels import PixelWeights, compute_band, pixel_loss
from kdcache.losses.target import PixelTargets, Target, count_pixels
from kdcache.losses.terms import LossTerms, Term, count_positions

_Answer = TypeVar("_Answer", bound=Tensor | Target)


class KnowledgeDistillationLoss(nn.Module):
    """L = alpha CE + beta T^2 KL(teacher || student) + gamma mean over levels of (1 - cosine).

    With `pseudo` above 0 images without a label learn the teacher's class: + pseudo CE with it,
    where the teacher's softmax (at T = 1) is at least `pseudo_threshold`.

    Teacher features are resized to the student's grid and projected to its channels by a 1x1
    convolution without bias, trained with the student. A term of weight 0 is not computed and needs
    no target. The terms equal those of `kdcache.losses.terms`, in fewer passes over memory;
    second derivatives are not available.

    Args:
        alpha, beta, gamma, pseudo: weights >= 0.
        temperature: T > 0.
        channels: level -> (teacher channels, student channels); only used with gamma > 0.
        pseudo_threshold: 0 to 1; with 0 all pixels of an image without a label count.

    Raises: ValueError if all weights are 0, or if gamma > 0 has no channels.

    >>> loss = KnowledgeDistillationLoss(alpha=1.0, beta=0.5, gamma=0.0, temperature=4.0)
    >>> scores, labels = torch.zeros(1, 2, 16, 16), torch.zeros(1, 16, 16, dtype=torch.int64)
    >>> loss(scores, {}, labels, teacher_NKHW=torch.zeros(1, 2, 2, 2)).means()  # ce is log 2
    {'ce': tensor(0.6931), 'kd': tensor(0.), 'total': tensor(0.6931)}
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.5,
        gamma: float = 0.3,
        temperature: float = 4.0,
        channels: Mapping[str, tuple[int, int]] | None = None,
        *,
        pseudo: float = 0.0,
        pseudo_threshold: float = 0.0,
    ) -> None:
        super().__init__()
        if not (alpha or beta or gamma or pseudo):
            raise ValueError(
                "loss: alpha, beta, gamma and pseudo are 0, expected one of them above 0; "
                "set alpha=1"
            )
        if gamma and not channels:
            raise ValueError(
                f"loss: channels is {channels!r}, expected level -> (teacher, student) "
                "with gamma > 0; set gamma=0"
            )
        self.alpha, self.beta, self.gamma, self.temperature = alpha, beta, gamma, temperature
        self.pseudo, self.pseudo_threshold = pseudo, pseudo_threshold
        pairs = channels.items() if channels and gamma else ()
        self.align = nn.ModuleDict(
            {level: nn.Conv2d(t, s, 1, bias=False) for level, (t, s) in pairs}
        )
        self.compute_band: Callable = compute_band  # may be replaced by a compiled one
        # sums counts over all processes, if there are several
        self.add_up: Callable[[Tensor], Tensor] = torch.clone

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term, by the names of `LossTerms.means`."""
        on_scores = {"ce": self.alpha, "pseudo": self.pseudo, "kd": self.beta}
        return {**on_scores, "feature": self.gamma}

    @property
    def needs_logits(self) -> bool:
        """Whether a term in use needs the teacher's logits."""
        return self.beta > 0 or self.pseudo > 0

    def forward(
        self,
        student_NKHW: Tensor,
        student_features: Mapping[str, Tensor],
        label_NHW: Tensor | None,
        *,
        teacher_NKHW: Tensor | Target | None = None,
        teacher_features: Mapping[str, Tensor | Target] | None = None,
        labelled_N: Tensor | None = None,
        hw: tuple[int, int] | None = None,
    ) -> LossTerms:
        """The total, which has a gradient, and each term, which has none.

        With several processes, each has a part of the batch: sums and counts are of that part. The
        total is its contribution to that of the batch: each sum over the count of all processes.

        Args:
            student_NKHW, student_features: the student's outputs with return_features=True.
            label_NHW: classes or VOID; needed if alpha > 0.
            teacher_NKHW: logits, as a tensor or as stored; needed if beta or pseudo > 0.
            teacher_features: level -> features, as tensors or as stored; needed if gamma > 0.
            labelled_N: bool, on the device; images with a label (default: all). The label of the
                others is VOID everywhere.
            hw: size at which logits are compared (default: of the label, else of student_NKHW).

        Raises: ValueError if a target is missing or its shape does not fit the student's.
        """
        # autocast would compute the matrix products in half precision
        with torch.autocast(student_NKHW.device.type, enabled=False):
            return self._compute(
                student_NKHW,
                student_features,
                label_NHW,
                teacher_NKHW,
                teacher_features,
                labelled_N,
                hw,
            )

    def _compute(
        self,
        student_NKHW: Tensor,
        student_features: Mapping[str, Tensor],
        label_NHW: Tensor | None,
        teacher_NKHW: Tensor | Target | None,
        teacher_features: Mapping[str, Tensor | Target] | None,
        labelled_N: Tensor | None,
        hw: tuple[int, int] | None,
    ) -> LossTerms:
        height, width = hw or (student_NKHW if label_NHW is None else label_NHW).shape[-2:]
        size = (height, width)
        pixels = self._choose_pixels(student_NKHW, label_NHW, teacher_NKHW, labelled_N, size)
        taught = teacher_features or {}
        for level, align in self.align.items():
            expected = (len(student_NKHW), align.in_channels, ...)
            _check_shape(level, taught.get(level), expected)
        counts = self._count(student_NKHW, pixels) | {
            level: count_positions(student_features[level]) for level in self.align
        }
        divisors = dict(
            zip(counts, self.add_up(torch.stack([*counts.values()])).clamp(min=1), strict=True)
        )
        total, terms = self._pixel_terms(student_NKHW, pixels, counts, divisors)
        sums = {}
        for level, align in self.align.items():
            weight_SC = align.get_parameter("weight").flatten(1)
            sums[level] = feature_loss(student_features[level], taught[level], weight_SC=weight_SC)
        if sums:
            total = (
                total
                + self.gamma * torch.stack([sums[level] / divisors[level] for level in sums]).mean()
            )
        feature = {level: Term(sum_.detach(), counts[level]) for level, sum_ in sums.items()}
        return LossTerms(total, feature=feature or None, **terms)

    def _choose_pixels(
        self,
        student: Tensor,
        label: Tensor | None,
        teacher: Tensor | Target | None,
        labelled: Tensor | None,
        hw: tuple[int, int],
    ) -> PixelTargets:
        """What the pixel terms in use compare with. Raises ValueError if it does not fit."""
        num, classes = student.shape[:2]
        scores = None
        if self.alpha:
            _check_shape("label_NHW", label, (num, *hw))
        if self.needs_logits:
            given = _check_shape("teacher_NKHW", teacher, (num, classes, ...))
            scores = (given.decode() if isinstance(given, Target) else given).detach()
        if self.pseudo:
            labelled = student.new_ones(num, dtype=torch.bool) if labelled is None else labelled
            _check_shape("labelled_N", labelled, (num,))
        return PixelTargets(
            hw,
            label_NHW=label if self.alpha else None,
            teacher_NKhw=scores,
            labelled_N=labelled if self.pseudo else None,
        )

    def _count(self, student: Tensor, targets: PixelTargets) -> dict[str, Tensor]:
        """Number of pixels of each term in use (ce, pseudo, kd), scalar float32 tensors."""
        label, counts = targets.label_NHW, {}
        if label is not None:
            counts["ce"] = (label != VOID).sum().float()
        if self.pseudo:
            counts["pseudo"] = count_pixels(targets, threshold=self.pseudo_threshold)
        return counts | ({"kd": count_positions(student, targets.hw)} if self.beta else {})

    def _pixel_terms(
        self,
        student: Tensor,
        targets: PixelTargets,
        counts: Mapping[str, Tensor],
        divisors: Mapping[str, Tensor],
    ) -> tuple[Tensor, dict[str, Term | None]]:
        """Their weighted sum, and the terms; None for a term of weight 0."""
        chosen = {name: self.weights[name] for name in ("ce", "pseudo", "kd")}
        if not any(chosen.values()):
            return student.new_zeros((), dtype=torch.float32), dict.fromkeys(chosen)
        factors = {
            name: weight / divisors[name] if weight else None for name, weight in chosen.items()
        }
        weights = PixelWeights(
            **factors, temperature=self.temperature, threshold=self.pseudo_threshold
        )
        total, *sums = pixel_loss(
            student, targets=targets, weights=weights, compute=self.compute_band
        )
        return total, {
            name: Term(sum_, counts[name]) if chosen[name] else None
            for name, sum_ in zip(chosen, sums, strict=True)
        }


def _check_shape(name: str, target: _Answer | None, expected: tuple) -> _Answer:
    """`target`; ValueError if its shape does not fit: a wrong one could be broadcast unnoticed.

    `...` at the end of `expected` stands for any grid.
    """
    found = None if target is None else tuple(target.shape)
    fixed = tuple(size for size in expected if size is not ...)
    if (
        target is None
        or found is None
        or found[: len(fixed)] != fixed
        or (... not in expected and len(found) != len(fixed))
    ):
        shape = ", ".join("any grid" if size is ... else str(size) for size in expected)
        raise ValueError(
            f"loss: {name} has shape {found}, expected ({shape}); give the targets of this batch"
        )
    return target
