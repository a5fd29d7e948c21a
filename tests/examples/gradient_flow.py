"""Who learns from which term: gradients of each term by the parts of the student, and what T^2 does
to their size.

python tests/examples/gradient_flow.py
"""

import torch

from kdcache import KnowledgeDistillationLoss, LightweightSegmentationModel
from kdcache.losses import kd_divergence
from tests.examples.small_cache import STUDENT_CHANNELS, small_cache

TERMS = {"labels": (1.0, 0.0, 0.0), "scores": (0.0, 1.0, 0.0), "features": (0.0, 0.0, 1.0)}


def norm(module):
    """Of the gradient by all of its parameters; None where there is none."""
    own = [p.grad.norm() for p in module.parameters() if p.grad is not None]
    return torch.stack(own).norm().item() if own else None


def gradients(student, channels, batch, weights: tuple[float, float, float]):
    """By part of the student, and by the projections; and those by the teacher's answers, which ask
    for one here.
    """
    loss = KnowledgeDistillationLoss(*weights, temperature=4.0, channels=channels)
    answers = [
        answer.clone().requires_grad_() for answer in (batch.logits, *batch.features.values())
    ]
    student.zero_grad()
    scores, features = student(batch.images, return_features=True)
    levels = dict(zip(channels, answers[1:], strict=True))
    loss(
        scores, features, batch.labels, teacher_NKHW=answers[0], teacher_features=levels
    ).total.backward()
    parts = {"backbone": student.backbone, "ASPP": student.aspp, "classifier": student.classifier}
    found = {name: norm(part) for name, part in {**parts, "projections": loss}.items()}
    return found, [answer.grad for answer in answers]


def size(student_NKHW, teacher_NKhw, temperature):
    """Norm of the gradient of T^2 KL by the student's scores."""
    leaf = student_NKHW.detach().clone().requires_grad_()
    kd_divergence(leaf, teacher_NKhw, temperature=temperature).mean.backward()
    return leaf.grad.norm().item()


with small_cache() as cache:
    (batch,) = cache.train.batches(batch_size=16, device="cpu")
    student = LightweightSegmentationModel(cache.num_classes, pretrained=False, aspp_channels=16)
    channels = {
        level: (count, STUDENT_CHANNELS[level]) for level, count in cache.teacher_channels.items()
    }
    for term, weights in TERMS.items():
        found, teacher = gradients(student, channels, batch, weights)
        print(
            f"{term:8}",
            *(f"{n} {'none' if v is None else format(v, '.5f')}" for n, v in found.items()),
            sep="  ",
        )
        reached = {name for name, value in found.items() if value is not None}
        heads = {"ASPP", "classifier"} if term != "features" else {"projections"}
        assert reached == {"backbone", *heads} and all(found[name] > 0 for name in reached)
        assert teacher == [None] * 4  # the teacher never learns
    scores = student(batch.images)
    sizes = {T: size(scores, batch.logits, T) for T in (1.0, 2.0, 4.0, 8.0)}
    sure = {
        T: size(20 * scores, 20 * batch.logits, T) / 20 for T in sizes
    }  # both 20 times more certain

plain = {T: value / T**2 for T, value in sizes.items()}
for T in sizes:
    print(
        f"T = {T:.0f}: gradient by scores {sizes[T]:.2e} with T^2, {plain[T]:.2e} without", end="; "
    )
    print(f"of scores 20 times larger, a 20th of it: {sure[T]:.2e}")
assert max(sizes.values()) < 2 * min(sizes.values())
assert plain[1.0] > 30 * plain[8.0]
assert sure[8.0] > 2 * sure[1.0]  # T^2 keeps the size only where T is not small against the scores
