"""How classes are shown on a page: small pictures of photographs, class maps, errors and heat, and
what is taken for what, the confusion matrices of a student and of a cached teacher.

Letters: H height, W width, K classes. A confusion is int64 [K, K]: pixels of each label (row) by
what they are called.
"""

from __future__ import annotations

import base64
import io
from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from kdcache.data.pictures import voc_palette
from kdcache.metrics import VOID
from kdcache.report.template import shorten

if TYPE_CHECKING:
    from kdcache.report.finished import Finished

LONGEST_PX = 320  # a column of the page is 220 px wide
# A photograph of CamVid at 320 px takes 8 kB as WebP, 14 kB as JPEG of the same error (38 dB),
# 98 kB as lossless PNG.
WEBP_QUALITY = 80
DARK_VOID = VOID - 1  # no class has this number: dataset.num_classes ends at 254
VOID_GREYS = {VOID: (176, 176, 176), DARK_VOID: (120, 120, 120)}
RIGHT, WRONG = 0, 1
ERROR_COLOURS = ((236, 236, 232), (200, 30, 60), VOID_GREYS[VOID], VOID_GREYS[DARK_VOID])
# Points of the colour map "magma" from 0 to the largest value. Their lightness rises, so that they
# can be told apart printed in grey and by the colour-blind.
HEAT_POINTS = (
    (0, 0, 4),
    (59, 15, 112),
    (140, 41, 129),
    (222, 73, 104),
    (254, 159, 109),
    (252, 253, 191),
)
NUM_HEATS = 64
# On a page of 1240 px a cell of 40 classes is 26 px wide, which is two digits and their margins; on
# a telephone of 390 px one of 12 classes is 20 px wide.
MOST_CLASSES = 40
MOST_NUMBERED_ON_PHONE = 12
MOST_PAIRS = 20
MOST_NAMED = 12  # classes that are named above the table of a teacher's classes
TINTS = (0.0, 0.005, 0.02, 0.05, 0.15, 0.4, 0.7)  # shares above which a cell has `.tint1`, ... 7


def photo_uri(image_HW3: np.ndarray, *, longest_px: int = LONGEST_PX) -> str:
    """A uint8 RGB image as the data URI of a WebP, averaged down to `longest_px` if larger."""
    small = Image.fromarray(shrink_photo(image_HW3, longest_px))
    return _as_uri(small, "WEBP", quality=WEBP_QUALITY)


def class_map_uri(classes_HW: np.ndarray, *, longest_px: int = LONGEST_PX) -> str:
    """A uint8 class map as the data URI of a palette PNG in VOC's colours, VOID hatched in greys.

    The pixel values are the class numbers; of hatched pixels VOID and DARK_VOID. A map larger than
    `longest_px` is thinned out by nearest neighbour, so that every colour remains a class.
    """
    thinned = thin_classes(classes_HW, longest_px)
    colours = voc_palette()
    for number, grey in VOID_GREYS.items():
        colours[number] = grey
    return _as_png(np.where(_hatch(thinned), np.uint8(DARK_VOID), thinned), colours)


def error_map_uri(
    classes_HW: np.ndarray, label_HW: np.ndarray, *, longest_px: int = LONGEST_PX
) -> str:
    """Pixels whose class is not the label's, as the data URI of a palette PNG.

    Both maps are uint8. Pixel values: RIGHT, WRONG, 2 and 3 for hatched VOID of the label.
    """
    classes, label = thin_classes(classes_HW, longest_px), thin_classes(label_HW, longest_px)
    errors = np.where(label == VOID, 2 + _hatch(label), classes != label).astype(np.uint8)
    return _as_png(errors, np.array(ERROR_COLOURS, np.uint8))


def heat_map_uri(values_HW: np.ndarray, *, most: float) -> str:
    """A heat map as the data URI of a palette PNG.

    Values from 0 to `most` become pixel values from 0 to NUM_HEATS - 1; larger ones are cut off.
    """
    numbers = np.rint(np.clip(values_HW / most, 0, 1) * (NUM_HEATS - 1))
    return _as_png(numbers.astype(np.uint8), heat_colours())


def heat_colours() -> np.ndarray:
    """The colours of a heat map, uint8 [NUM_HEATS, 3], evenly spaced between HEAT_POINTS."""
    places = np.linspace(0, len(HEAT_POINTS) - 1, NUM_HEATS)
    channels = [
        np.interp(places, range(len(HEAT_POINTS)), channel)
        for channel in zip(*HEAT_POINTS, strict=True)
    ]
    return np.rint(np.stack(channels, 1)).astype(np.uint8)


def shrink_photo(image_HW3: np.ndarray, longest_px: int = LONGEST_PX) -> np.ndarray:
    """The image averaged down to `longest_px`."""
    return np.asarray(_shrink(Image.fromarray(image_HW3), longest_px, Image.Resampling.BOX))


def shrink_map(values_HW: np.ndarray, longest_px: int = LONGEST_PX) -> np.ndarray:
    """float32 values averaged down to `longest_px`."""
    return np.asarray(_shrink(Image.fromarray(values_HW), longest_px, Image.Resampling.BOX))


def thin_classes(classes_HW: np.ndarray, longest_px: int = LONGEST_PX) -> np.ndarray:
    """The class map thinned out to `longest_px`."""
    return np.asarray(_shrink(Image.fromarray(classes_HW), longest_px, Image.Resampling.NEAREST))


def _hatch(classes_HW: np.ndarray) -> np.ndarray:
    """Dark diagonal stripes of VOID, bool [H, W]: no class looks so, even printed in grey."""
    stripe_px = max(2, max(classes_HW.shape) // 50)
    down, right = np.indices(classes_HW.shape)
    return (classes_HW == VOID) & ((down + right) // stripe_px % 2 == 0)


def _shrink(picture: Image.Image, longest_px: int, resampling: Image.Resampling) -> Image.Image:
    share = longest_px / max(picture.size)
    if share >= 1:
        return picture
    return picture.resize(tuple(max(1, round(px * share)) for px in picture.size), resampling)


def _as_png(numbers_HW: np.ndarray, colours_N3: np.ndarray) -> str:
    picture = Image.fromarray(numbers_HW)
    picture.putpalette(colours_N3.tobytes())
    # optimize=True takes 30 times as long on noise of two classes, for 3 % fewer bytes
    return _as_uri(picture, "PNG")


def _as_uri(picture: Image.Image, kind: str, **options: object) -> str:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode()


def normalize_rows(confusion_KK: np.ndarray) -> np.ndarray:
    """Shares of each label's pixels, float64 [K, K], 0 to 1; NaN for a label without pixels."""
    pixels = confusion_KK.sum(1, keepdims=True)
    return np.divide(
        confusion_KK, pixels, out=np.full(confusion_KK.shape, np.nan), where=pixels > 0
    )


def find_most_confused(shares_KK: np.ndarray, most: int) -> list[tuple[int, int]]:
    """The pairs (label, called) with the largest shares of the label's pixels.

    Returns: at most `most`, the largest first, none of share 0; equal ones by number.
    """
    wrong = np.where(np.eye(len(shares_KK), dtype=bool), 0.0, np.nan_to_num(shares_KK))
    falling = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = (divmod(int(place), len(wrong)) for place in falling)
    return [pair for pair in pairs if wrong[pair] > 0]


def view_confusion(names: list[str], student: Finished, baseline: Finished | None) -> dict | None:
    """The section of a student; None if its confusion is not kept."""
    if student.confusion_KK is None:
        return None
    shares = normalize_rows(student.confusion_KK)
    rows = [_view_row(label, names, shares[label]) for label in range(len(names))]
    return {
        "names": names,
        "rows": rows if len(names) <= MOST_CLASSES else [],
        "is_many": len(names) > MOST_NUMBERED_ON_PHONE,
        **_view_pairs(names, student.confusion_KK, baseline),
    }


def _view_row(label: int, names: list[str], shares_K: np.ndarray) -> list[dict | None]:
    """A cell per class; None for a cell without pixels."""
    short = list(map(shorten, names))
    return [
        {
            "kind": "right" if label == called else "wrong",
            "tint": bisect_right(TINTS, share),
            "title": f"{short[label]} called {short[called]}: {100 * share:.2f} %",
            "number": f"{100 * share:.0f}" if share >= 0.005 else "",
        }
        if share > 0  # NaN: no such pixel
        else None
        for called, share in enumerate(shares_K)
    ]


def _view_pairs(names: list[str], confusion_KK: np.ndarray, baseline: Finished | None) -> dict:
    """A table with a row per pair: label, what it is called, shares."""
    shares, wrong = normalize_rows(confusion_KK), confusion_KK.sum() - confusion_KK.trace()
    is_compared = baseline is not None and baseline.confusion_KK is not None
    before = normalize_rows(baseline.confusion_KK) if is_compared else None
    pairs = [
        [
            [(names[label], label), (names[called], called)],
            f"{100 * shares[label, called]:.1f}",
            *([f"{100 * before[label, called]:.1f}"] if is_compared else []),
            f"{100 * confusion_KK[label, called] / wrong:.1f}",
        ]
        for label, called in find_most_confused(shares, MOST_PAIRS)
    ]
    compared = ["baseline"] if is_compared else []
    titles = ["label → called", "% of the label", *compared, "% of all errors"]
    return {"titles": titles, "pairs": pairs}


def find_called(confusion_KK: np.ndarray) -> list[int | None]:
    """What most pixels of each label are called; None for a label without pixels.

    The label itself if no other class has more.
    """
    called = []
    for number, counts in enumerate(confusion_KK):
        most = int(counts.argmax())
        called.append(
            None if not counts.any() else number if counts[number] == counts[most] else most
        )
    return called


def find_misnamed(confusion_KK: np.ndarray) -> list[int]:
    """Labels most of whose pixels are called one other class."""
    called = find_called(confusion_KK)
    return [number for number, most in enumerate(called) if most not in (None, number)]


def is_exchanged(confusion_KK: np.ndarray) -> bool:
    """Whether several labels have other labels' names, and no two the same."""
    called = [most for most in find_called(confusion_KK) if most is not None]
    return len(find_misnamed(confusion_KK)) > 1 and len(set(called)) == len(called)


def view_teacher_classes(names: list[str], confusion_KK: np.ndarray) -> dict:
    """The section of a gallery: a verdict, the confusion as a picture, a row per class.

    Another order of classes, or weights of another data set, show here at once.
    """
    called, misnamed = find_called(confusion_KK), find_misnamed(confusion_KK)
    matrix_KK = confusion_KK / np.maximum(confusion_KK.sum(1, keepdims=True), 1)
    return {
        "picture": heat_map_uri(matrix_KK, most=1.0),
        "is_open": len(names) <= MOST_CLASSES,
        "num_labelled": len(called) - called.count(None),
        "num_misnamed": len(misnamed),
        "misnamed": [(names[k], names[called[k]]) for k in misnamed[:MOST_NAMED]],
        "is_exchanged": is_exchanged(confusion_KK),
        "rows": [
            _view_class(number, called[number], names, confusion_KK) for number in range(len(names))
        ],
    }


def _view_class(number: int, most: int | None, names: list[str], confusion_KK: np.ndarray) -> dict:
    total = max(int(confusion_KK.sum()), 1)
    labels, answers = int(confusion_KK[number].sum()), int(confusion_KK[:, number].sum())
    row = {
        "number": number,
        "name": names[number],
        "of_labels": f"{100 * labels / total:.1f}",
        "of_answers": f"{100 * answers / total:.1f}",
        "is_wrong": most not in (None, number),
        "called": None,
        "right": "-",
    }
    if most is not None:
        row["right"] = f"{100 * confusion_KK[number, number] / labels:.1f}"
        share = f"{100 * confusion_KK[number, most] / labels:.1f} %"
        row["called"] = {"number": most, "name": names[most], "share": share}
    return row
