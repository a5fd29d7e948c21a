"""Response distillation: a student learns the teacher's softened scores, from the cache alone and
without any label.

python tests/examples/response_distillation.py
"""

import torch
import torch.nn.functional as F

from kdcache import KnowledgeDistillationLoss, LightweightSegmentationModel
from tests.examples.small_cache import small_cache

T = 4.0  # softening: scores are divided by it on both sides


def divergence(student_NKHW, teacher_NKhw):
    """T^2 KL(teacher || student), averaged over pixels: the term as a textbook has it."""
    teacher = F.interpolate(
        teacher_NKhw, student_NKHW.shape[-2:], mode="bilinear"
    )  # cached before it was upsampled
    log_p, log_q = (F.log_softmax(scores / T, dim=1) for scores in (teacher, student_NKHW))
    return T**2 * (log_p.exp() * (log_p - log_q)).sum(1).mean()


with small_cache() as cache:
    (batch,) = cache.train.batches(batch_size=16, answers=["logits"], device="cpu")
    print(f"images {list(batch.images.shape)}, cached scores {list(batch.logits.shape)}")

    student = LightweightSegmentationModel(cache.num_classes, pretrained=False, aspp_channels=16)
    loss = KnowledgeDistillationLoss(alpha=0.0, beta=1.0, gamma=0.0, temperature=T)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    found = []
    for step in range(20):
        scores, features = student(batch.images, return_features=True)
        terms = loss(
            scores, features, None, teacher_NKHW=batch.logits
        )  # in one pass, with its gradient
        if step == 0:
            textbook = divergence(scores, batch.logits).item()
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        found.append(terms.kd.mean.item())

print(f"first step: {found[0]:.6f} by kdcache, {textbook:.6f} by the textbook")
print(f"after {len(found)} steps: {found[-1]:.6f}")
assert abs(found[0] / textbook - 1) < 1e-4
assert found[-1] < 0.5 * found[0]
