"""Words and numbers that several sections share."""

from __future__ import annotations

from typing import Literal

STRIDE = 16  # the coarsest stored grid; crops are multiples of it, so that every grid is exact
VOID = 255  # stored label of what no loss and no metric counts: void pixels, padding
FROM_CACHE = ("dataset", "augment", "teacher")  # sections that describe what a cache holds
OF_CACHE = (*FROM_CACHE, "cache")  # those of a manifest that are read; the others choose nothing
BUILT_IN_STUDENT = "mobilenetv3_small"
FCNS = ("fcn_resnet50", "fcn_resnet101")
TORCHVISION = (
    *FCNS, "deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
)  # fmt: skip
"""Teachers that torchvision has."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB from 0 to 1, as torchvision's weights expect it."""
LEVELS = ("low", "mid", "high")
TERMS = {"ce": "alpha", "kd": "beta", "feature": "gamma", "pseudo": "pseudo", "channel": "channel"}
"""Term of the loss, as metrics.jsonl names it -> its weight in section loss."""
KINDS = ("float16", "int8", "lowrank")
"""How one answer of the teacher is stored. Manifests, docs/format.md and messages about a stored
answer say these."""
PRESETS = {
    "exact": {"logits": "float16", "features": "float16"},
    "half": {"logits": "int8", "features": "int8"},
    "compact": {"logits": "int8", "features": "lowrank"},  # logits have no basis
}
"""The kinds of all answers by one word: what is recommended, forecast and measured."""

IDLE_SHARE = 0.5
"""`train.unlabelled_share` of runs with labels only: what it is makes no difference to them, that
it is set decides the number of their steps. A batch of two rows allows no other."""

SizePx = int | list[int]
Precision = Literal["float32", "bfloat16", "float16"]


def as_preset(word: str) -> dict[str, str]:
    """The kinds of logits and features if `word` stands for all answers, a preset or a kind."""
    return PRESETS.get(word) or next(p for p in PRESETS.values() if p["features"] == word)


def as_kind(word: str) -> str:
    """The kind if `word` stands for one answer, a kind or the preset that gives features it."""
    return PRESETS[word]["features"] if word in PRESETS else word
