"""The fields of a manifest and of a commit record whose values people and later commands read."""

from __future__ import annotations

from kdcache.cache.layout import SplitLayout
from kdcache.schema import (
    FieldError,
    Kind,
    all_of,
    fields,
    flag,
    list_of,
    maybe,
    number,
    plain,
    table_of,
    text,
    whole,
)

MOST_PX = 2**31
SHARE = number(0, 1)
_HW = list_of(whole(1, MOST_PX), least=2, most=2)
_TOP_LEFT = list_of(whole(0, MOST_PX), least=2, most=2)
_BOX = list_of(whole(0, MOST_PX), least=4, most=4)
_FACTOR = number(0, 100)

PADDED: Kind = fields({"image_box": _BOX, "image_hw": _HW})
"""A validation view."""
DRAWN: Kind = fields(
    {
        "resized_hw": _HW,
        "crop_tl": _TOP_LEFT,
        "size_hw": _HW,
        "flip": flag,
        "brightness": _FACTOR,
        "contrast": _FACTOR,
        "saturation": _FACTOR,
        "image_box": _BOX,
    }
)
"""A training view, or one of an unlabelled image."""

SECTION = table_of(plain)
SETTINGS: Kind = fields(dict.fromkeys(("dataset", "augment", "teacher", "cache"), SECTION))
MACHINE = {
    "device": text(),
    "num_threads": whole(1, 1_000_000),
    "versions": table_of(text()),
}
"""What a result was computed on; an older kdcache did not write it."""
INFORMATION: Kind = fields(
    {"settings": SETTINGS},
    {
        **MACHINE,
        "teacher_miou": maybe(SHARE),
        "teacher_train_miou": maybe(SHARE),
        "teacher_per_class_iou": maybe(list_of(maybe(SHARE), most=254)),
        "scored_views": table_of(whole()),
        "fidelity": fields({}, {"views": whole()}),
    },
)
IDENTITY: Kind = fields(
    {
        **dict.fromkeys(("augment", "teacher", "arrays"), SECTION),
        "dataset": all_of(SECTION, fields({"num_classes": whole(2, 254)})),
    }
)


def check_views(views: list, layout: SplitLayout) -> None:
    """Raise FieldError if a view cannot be one of that split: its image lies inside the array."""
    list_of(PADDED if layout.split == "val" else DRAWN)(views)
    most_hw = layout.array("image").item_shape[:2]
    for row, view in enumerate(views):
        top, left, bottom, right = view["image_box"]
        if not (top < bottom <= most_hw[0] and left < right <= most_hw[1]):
            what = f"is {list(view['image_box'])}, expected a box inside {list(most_hw)}"
            raise FieldError(what, f"views[{row}].image_box")
