"""kdcache: distil a segmentation teacher that is asked only once, from a cache of what it said.

The names below are imported when they are first used: `import kdcache` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdcache.api import build_cache as build_cache
    from kdcache.api import compare as compare
    from kdcache.api import distill as distill
    from kdcache.api import load_student as load_student
    from kdcache.cache.reader import CacheReader as CacheReader
    from kdcache.cache.reader import open_split as open_split
    from kdcache.losses import KnowledgeDistillationLoss as KnowledgeDistillationLoss
    from kdcache.metrics import compute_iou_per_class as compute_iou_per_class
    from kdcache.metrics import compute_miou as compute_miou
    from kdcache.metrics import count_confusion as count_confusion
    from kdcache.metrics import evaluate_segmentation as evaluate_segmentation
    from kdcache.models.student import LightweightSegmentationModel as LightweightSegmentationModel
    from kdcache.training.serving import open_cache as open_cache

_HOMES = {
    "CacheReader": "kdcache.cache.reader",
    "KnowledgeDistillationLoss": "kdcache.losses",
    "LightweightSegmentationModel": "kdcache.models.student",
    "build_cache": "kdcache.api",
    "compare": "kdcache.api",
    "compute_iou_per_class": "kdcache.metrics",
    "compute_miou": "kdcache.metrics",
    "count_confusion": "kdcache.metrics",
    "distill": "kdcache.api",
    "evaluate_segmentation": "kdcache.metrics",
    "load_student": "kdcache.api",
    "open_cache": "kdcache.training.serving",
    "open_split": "kdcache.cache.reader",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdcache' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
