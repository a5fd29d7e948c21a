"""Feature distillation: the student's features turn into the direction of the teacher's, seen
through a trained projection.

python tests/examples/feature_distillation.py
"""

import torch
import torch.nn.functional as F

from kdcache import KnowledgeDistillationLoss, LightweightSegmentationModel
from tests.examples.small_cache import STUDENT_CHANNELS, small_cache


def distance(student_NSHW, teacher_NChw, projection):
    """1 - cosine over channels, averaged over positions: the term as a textbook has it."""
    target = projection(F.interpolate(teacher_NChw, student_NSHW.shape[-2:], mode="bilinear"))
    return (1 - F.cosine_similarity(student_NSHW, target, dim=1)).mean()


with small_cache() as cache:
    (batch,) = cache.train.batches(batch_size=16, answers=["low", "mid", "high"], device="cpu")
    student = LightweightSegmentationModel(cache.num_classes, pretrained=False, aspp_channels=16)
    channels = {
        level: (count, STUDENT_CHANNELS[level]) for level, count in cache.teacher_channels.items()
    }
    loss = KnowledgeDistillationLoss(alpha=0.0, beta=0.0, gamma=1.0, channels=channels)
    optimizer = torch.optim.Adam(
        [*student.parameters(), *loss.parameters()], lr=1e-3
    )  # the projections learn, too
    found = []
    for step in range(20):
        scores, features = student(batch.images, return_features=True)
        terms = loss(scores, features, None, teacher_features=batch.features)
        if step == 0:
            first = {
                name: distance(features[name], batch.features[name], loss.align[name]).item()
                for name in channels
            }
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        found.append({level: term.mean.item() for level, term in terms.feature.items()})

for level, (theirs, ours) in channels.items():
    print(
        f"{level:4}  {theirs:4} -> {ours} channels, 1 - cosine {found[0][level]:.4f} at first",
        end="",
    )
    print(f" (textbook {first[level]:.4f}), {found[-1][level]:.4f} after {len(found)} steps")
    assert abs(found[0][level] - first[level]) < 1e-4
    assert found[-1][level] < found[0][level]
print(f"mean over levels: {sum(found[0].values()) / 3:.4f} -> {sum(found[-1].values()) / 3:.4f}")
