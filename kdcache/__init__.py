"""kdcache: distil a segmentation teacher by asking it once. The teacher itself is in `kdcache.models.teacher`."""

from kdcache.cache.reader import CacheReader as CacheReader
from kdcache.cache.reader import open_split as open_split
from kdcache.losses import KnowledgeDistillationLoss as KnowledgeDistillationLoss
from kdcache.metrics import compute_iou_per_class as compute_iou_per_class
from kdcache.metrics import compute_miou as compute_miou
from kdcache.metrics import count_confusion as count_confusion
from kdcache.metrics import evaluate_segmentation as evaluate_segmentation
from kdcache.models.student import LightweightSegmentationModel as LightweightSegmentationModel
from kdcache.training.serving import open_cache as open_cache
