"""Words and numbers that several sections share, and checks of single settings.

A check raises SettingsError with the setting, its value and its range.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from kdcache.errors import KdcacheError, Phrase, SettingsError, describe, hide_passwords, refuse
from kdcache.schema import FieldError, plain

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
NO_AUX = ("lraspp_mobilenet_v3_large",)  # of them, without an auxiliary head
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB from 0 to 1, as torchvision's weights expect it."""
AS_BUILT = "as_built"  # teacher.weights: those that the network comes with
OWN_CODE = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*"
"""package.module:function of the user's."""
TIMM = "timm:"  # students over a backbone of timm begin with this
SMP, TRANSFORMERS = "smp:", "transformers:"
LIBRARIES = (SMP, TRANSFORMERS)
"""How teachers of other libraries begin; any other PREFIX:NAME is code of the user's."""
LEVELS = ("low", "mid", "high")
TERMS = {"ce": "alpha", "kd": "beta", "feature": "gamma", "pseudo": "pseudo"}
"""Term of the loss, as metrics.jsonl names it -> its weight in section loss."""
REMOVED = {"loss.channel": 0.0, "loss.channel_temperature": None, "loss.project": "teacher"}
"""Settings that older files have -> the value at which they did nothing; None for any value.

Removed in 0.2.0, since they gained nothing (docs/training.md, "Tried and left out").
"""
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
Option = bool | int | float | str | list | None
"""What a function of the user's is called with."""
Precision = Literal["float32", "tf32", "bfloat16", "float16"]
"""Of a teacher."""
BUCKET_SCHEMES = ("s3", "gs", "az")
"""Of addresses of object stores."""
MOST_PX = 65_536  # of a side
PATHS = (
    "dataset.root", "dataset.images", "dataset.masks", "dataset.val_images", "dataset.val_masks",
    "dataset.unlabelled", "teacher.arch", "teacher.weights", "teacher.backbone_weights", "fit.out",
    "student.backbone_weights", "cache.path", "cache.stage_dir", "run.dir",
)  # fmt: skip
"""Settings that are a path, or can be one."""


def is_own_student(arch: str) -> bool:
    """Whether `student.arch` names code of the user's."""
    return arch != BUILT_IN_STUDENT and not arch.startswith(TIMM)


def as_preset(word: str) -> dict[str, str]:
    """The kinds of logits and features if `word` stands for all answers, a preset or a kind."""
    presets = (preset for preset in PRESETS.values() if preset["features"] == word)
    return PRESETS.get(word) or next(presets, {"logits": word, "features": word})


def as_kind(word: str) -> str:
    """The kind if `word` stands for one answer, a kind or the preset that gives features it."""
    return PRESETS[word]["features"] if word in PRESETS else word


def check_range(field_name: str, value: float, low: float, high: float) -> None:
    """Raises SettingsError outside low..high, both allowed."""
    if not low <= value <= high:  # also refuses NaN
        raise refuse(field_name, value, f"{low} to {high}")


def check_storable(field_name: str, value: object) -> None:
    """Raise SettingsError unless a document can hold the value."""
    try:
        plain(value)
    except FieldError as error:
        raise refuse(field_name, value, f"finite values ({error})") from None


def check_removed(
    values: Mapping[str, object], *, where: object = "settings",
    cure: str = "leave it out", kind: type[KdcacheError] = SettingsError,
) -> None:  # fmt: skip
    """Check that values by dotted name hold no removed setting that did something.

    Args:
        where: the values stand. kind: of the error.

    Raises: `kind`.
    """
    for name, idle in REMOVED.items():
        if name in values and idle not in (None, values[name]):
            expected = Phrase(f"{idle!r}, as it was removed in 0.2.0")
            raise kind(
                describe(where, field=name, found=values[name], expected=expected, cure=cure)
            )


def check_positive(field_name: str, value: float) -> None:
    """Raises SettingsError unless 0 < value < infinity."""
    if not 0 < value < float("inf"):
        raise refuse(field_name, value, "a number above 0")


def check_size(field_name: str, size: int | list[int] | None, *, stride: int) -> None:
    """Raises SettingsError unless `size` is None, N or [height, width], multiples of `stride`."""
    if size is None:
        return
    if isinstance(size, list) and len(size) != 2:
        raise refuse(field_name, size, "one number or [height, width]")
    if any(px < stride or px % stride or px > MOST_PX for px in as_hw(size)):
        raise refuse(field_name, size, f"multiples of {stride}, {stride} to {MOST_PX}")


def as_hw(size: int | list[int]) -> tuple[int, int]:
    """N or [height, width] -> (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def expand_path(field_name: str, text: str) -> str:
    """A path as a person writes it, with ~, ~NAME or $NAME at its begin put in as a shell does.

    Files of settings, Python and --NAME=VALUE reach no shell. What is stored is not expanded again.

    Raises: SettingsError if there is no such user or variable.

    >>> expand_path("run.dir", "./~/runs")
    './~/runs'
    """
    prefix = TRANSFORMERS if text.startswith(TRANSFORMERS) else ""
    head, slash, rest = text.removeprefix(prefix).partition("/")
    known, variable = None, re.fullmatch(r"\$(\w+|\{\w+\})", head)
    if variable:
        known = os.environ.get(variable[1].strip("{}"))
    elif head == "~" or (head.startswith("~") and slash):
        with suppress(RuntimeError):
            known = str(Path(head).expanduser())
    else:
        return text
    if not known:
        what = "a variable that is set" if variable else "the folder of a user who is there"
        raise refuse(field_name, text, f"{what} ({prefix}./{head} is a file or folder here)")
    return f"{prefix}{known}{slash}{rest}"


def clean_address(field_name: str, given: object) -> str | Path:
    """Where a cache is: "s3://BUCKET/KEY" without needless slashes, or a path. Nothing is opened.

    Raises: SettingsError if it is neither.
    """
    text = str(given)
    if hide_passwords(text) != text:
        expected = "an address without a password: credentials come from the environment"
        raise refuse(field_name, hide_passwords(text), expected)
    if re.match(rf"({'|'.join(BUCKET_SCHEMES)}):/+[^/]", text) and "://" not in text:
        expected = f"s3://BUCKET/KEY, with two slashes; a folder of that name is ./{text}"
        raise refuse(field_name, text, expected)
    if "://" not in text:
        return Path(text)
    scheme, _, rest = text.partition("://")
    if scheme not in BUCKET_SCHEMES:
        expected = "a path, or an address that begins with s3://, gs:// or az://"
        raise refuse(field_name, text, expected)
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise refuse(field_name, text, f"s3://BUCKET/KEY ({text!r} names no bucket)")
    return f"{scheme}://{bucket}/{'/'.join(part for part in key.split('/') if part)}"
