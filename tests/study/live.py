"""The teacher in the loop: what distillation without a cache would do, for comparison only. Letters: B batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kdcache.models.teacher import Teacher
from kdcache.training.batches import Batch


def ask_teacher(teacher: Teacher, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Image and label of each batch as they are, the teacher's float32 answers in place of all stored ones."""
    for batch in batches:
        kept = {name: batch.arrays[name] for name in ("image", "label") if name in batch.arrays}
        answer = {name: value.clone() for name, value in teacher(batch.arrays["image"]).items()}  # no inference tensors
        yield Batch({**kept, **answer}, batch.sample_ids)
