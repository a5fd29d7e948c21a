"""Words and numbers that several sections share."""

from __future__ import annotations

from typing import Literal

STRIDE = 16  # the coarsest stored grid; crops are multiples of it, so that every grid is exact
VOID = 255  # stored label of what no loss and no metric counts: void pixels, padding
FROM_CACHE = ("dataset", "augment", "teacher")  # sections that describe what a cache holds
BUILT_IN_STUDENT = "mobilenetv3_small"
LEVELS = ("low", "mid", "high")
KINDS = ("float16", "int8", "lowrank")  # how an answer of the teacher may be stored
PRESETS = {"exact": "float16", "half": "int8", "compact": "lowrank"}

SizePx = int | list[int]
Precision = Literal["float32", "bfloat16", "float16"]
