"""A training loop of one's own: batches from a cache, three loss terms, mIoU before and after.

python tests/examples/mini_training_loop.py
"""

import torch

from kdcache import KnowledgeDistillationLoss, LightweightSegmentationModel, evaluate_segmentation
from tests.examples.small_cache import STUDENT_CHANNELS, small_cache

EPOCHS = 12


def score(student, cache):
    """mIoU on the validation images, fractions of 1."""
    batches = cache.val.batches(batch_size=8, answers=[], device="cpu")
    return evaluate_segmentation(student, batches, num_classes=cache.num_classes).miou


with small_cache() as cache:
    student = LightweightSegmentationModel(cache.num_classes, pretrained=False, aspp_channels=16)
    channels = {
        level: (count, STUDENT_CHANNELS[level]) for level, count in cache.teacher_channels.items()
    }
    loss = KnowledgeDistillationLoss(
        alpha=1.0, beta=0.5, gamma=0.3, temperature=4.0, channels=channels
    )
    optimizer = torch.optim.Adam([*student.parameters(), *loss.parameters()], lr=3e-3)
    before, history = score(student, cache), []
    for epoch in range(EPOCHS):
        for batch in cache.train.batches(batch_size=8, epoch=epoch, device="cpu"):
            scores, features = student(batch.images, return_features=True)
            terms = loss(scores, features, batch.labels, **batch.teacher)
            optimizer.zero_grad()
            terms.total.backward()
            optimizer.step()
        history.append({name: value.item() for name, value in terms.means().items()})
    after = score(student, cache)

for epoch in (0, EPOCHS - 1):  # the last batch of each
    print(
        f"epoch {epoch + 1:2}",
        *(f"{name} {value:.4f}" for name, value in history[epoch].items()),
        sep="  ",
    )
print(f"mIoU on val: {before:.4f} before, {after:.4f} after {EPOCHS} epochs")
assert history[-1]["total"] < history[0]["total"]
assert after > before
