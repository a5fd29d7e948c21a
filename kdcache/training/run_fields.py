"""The fields of a run's files: result.json, a line of metrics.jsonl, and a checkpoint's facts."""

from __future__ import annotations

from kdcache.cache.fields import MACHINE, SHARE
from kdcache.schema import (
    Kind,
    all_of,
    fields,
    list_of,
    maybe,
    number,
    plain,
    table_of,
    text,
    whole,
)

_TIME = number(0, 1e12)
_ANY = number(-1e30, 1e30)
_ORIGIN = {
    "pictures_identity": maybe(text()),
    "validation_identity": maybe(text()),
    "unlabelled_samples": whole(1),
}
IOUS = list_of(maybe(SHARE), most=254)

HYPERPARAMETERS: Kind = all_of(
    plain,
    fields(
        {"loss.beta": _ANY, "loss.gamma": _ANY},
        {
            **dict.fromkeys(("loss.alpha", "loss.pseudo", "loss.channel"), _ANY),
            "train.seed": whole(),
            "train.unlabelled_share": maybe(SHARE),
            "student.options": table_of(plain),
        },
    ),
)
"""Settings that decided the numbers, by dotted name; an older kdcache has fewer."""

RESULT: Kind = fields(
    {"hyperparameters": HYPERPARAMETERS, "cache_identity": text(), "miou": SHARE},
    {
        **_ORIGIN,
        **MACHINE,
        "device_type": text(),
        "processes": list_of(whole(1), most=100_000),
        **dict.fromkeys(("baseline_miou", "teacher_miou"), maybe(SHARE)),
        "last_miou": SHARE,
        "baseline": maybe(text()),
        **dict.fromkeys(("improvement_points", "improvement_percent"), maybe(_ANY)),
        "per_class_iou": table_of(maybe(SHARE)),
        **dict.fromkeys(("params", "epochs", "best_epoch"), whole(1)),
        "seconds": _TIME,
    },
)
_TIMES = dict.fromkeys(("step_s", "data_wait_s", "validation_s", "time_s"), _TIME)
_LOSSES = dict.fromkeys(("total", "ce", "pseudo", "kd", "channel", "feature", "lr"), _ANY)
_OTHERS = {"epoch": whole(1), "processes": whole(1), "per_class_iou": IOUS}
EPOCH: Kind = fields(
    {"miou": SHARE, "total": _ANY, "time_s": _TIME}, {**_TIMES, **_LOSSES, **_OTHERS}
)
"""A line of metrics.jsonl."""
EPOCH_TIMES: Kind = fields({"time_s": _TIME, "validation_s": _TIME})
"""All that a comparison reads of a line."""

FACTS: Kind = fields(
    {
        "hyperparameters": HYPERPARAMETERS,
        "cache_identity": text(),
        "history": list_of(EPOCH, least=1),
    },
    {**_ORIGIN, "epoch": whole(1), "miou": SHARE, "baseline_miou": maybe(SHARE)},
)
"""What a checkpoint has beside tensors."""
