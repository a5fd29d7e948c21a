"""What the numbers or the colours in masks mean, as settings say it: by hand, or by a name.

A class is a number, or the name it has in `dataset.class_names`; void is 255.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from kdcache.config.names import VOID
from kdcache.errors import refuse

LabelMap = Literal["cityscapes", "ade20k"] | dict[str, int]
Palette = Literal["voc", "cityscapes"] | dict[str, list]
Colour = tuple[int, int, int]
MOST_VALUE = 65_535  # of a mask of 16 bits
_NUM_CLASSES = {"cityscapes": 19, "ade20k": 150}
# a class in the order of its train id: the number in *_labelIds.png, the colour in *_color.png
_CITYSCAPES: dict[str, tuple[int, Colour]] = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
CITYSCAPES_CLASSES = list(_CITYSCAPES)
_CITYSCAPES_VOID = [  # the other 15 numbers; a colour that is also a class's cannot be told
    (0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180),
    (150, 100, 100), (150, 120, 90), (0, 0, 90), (0, 0, 110),
]  # fmt: skip


def voc_colour(number: int) -> Colour:
    """Of a class in PASCAL VOC's colour map: its bits spread over red, green and blue.

    >>> voc_colour(15), voc_colour(255)  # person, void
    ((192, 128, 128), (224, 224, 192))
    """
    bits = [[number >> (3 * bit + channel) & 1 for bit in range(8)] for channel in range(3)]
    return tuple(sum(one << (7 - bit) for bit, one in enumerate(channel)) for channel in bits)


def resolve_label_map(given: LabelMap, *, num_classes: int) -> dict[int, int]:
    """The class, or 255, of each value that a mask may hold; empty if values are the classes.

    255 is no value of a named map, so that masks that hold the classes already are refused.

    Raises: SettingsError for what is no stored value, or no class.
    """
    if isinstance(given, str):
        _check_number(f"dataset.label_map {given}", given, num_classes)
        if given == "ade20k":
            return {0: VOID, **{number + 1: number for number in range(num_classes)}}
        ids = [id for id, _ in _CITYSCAPES.values()]
        return {id: ids.index(id) if id in ids else VOID for id in range(34)}
    classes = {*range(num_classes), VOID}
    if not (all(map(_is_value, given)) and classes.issuperset(given.values())):
        expected = f"values 0 to {MOST_VALUE}, each a class 0 to {num_classes - 1} or {VOID}, void"
        raise refuse("dataset.label_map", given, expected)
    return {int(value): number for value, number in given.items()}


def resolve_palette(given: Palette, *, names: list[str]) -> dict[int, list[Colour]]:
    """Class -> its colours, in order, void as 255; empty if masks hold numbers.

    Args:
        names: of the classes.

    Raises: SettingsError for what is no class or no colour, and for a colour of two classes.
    """
    if given == "voc":
        return {number: [voc_colour(number)] for number in (*range(len(names)), VOID)}
    if given == "cityscapes":
        _check_number("dataset.palette cityscapes", given, len(names))
        colours = enumerate(colour for _, colour in _CITYSCAPES.values())
        return {**{number: [colour] for number, colour in colours}, VOID: sorted(_CITYSCAPES_VOID)}
    owners: dict[Colour, str] = {}
    palette: dict[int, list[Colour]] = {}
    for name, written in given.items():
        number, colours = _find_class(name, names), _read_colours(name, written)
        if number in palette:
            expected = f"class {number} once, with a list of its colours"
            raise refuse("dataset.palette", list(given), expected)
        for colour in colours:
            if owners.setdefault(colour, name) != name:
                expected = f"another colour than that of {owners[colour]}"
                raise refuse(f"dataset.palette.{name}", list(colour), expected)
        palette[number] = sorted(colours)
    return dict(sorted(palette.items()))


def _check_number(field: str, name: str, num_classes: int) -> None:
    if num_classes != _NUM_CLASSES[name]:
        raise refuse("dataset.num_classes", num_classes, f"{_NUM_CLASSES[name]}, as {field} has")


def _find_class(name: str, names: list[str]) -> int:
    """The class of a number or a name; a name of digits must not be another class's number."""
    numbers = {str(number): number for number in (*range(len(names)), VOID)}
    found = {of[name] for of in (numbers, dict(zip(names, range(len(names)), strict=True)))
             if name in of}  # fmt: skip
    if len(found) == 2:
        expected = f"one class: that is the name of class {names.index(name)}, not class {name}"
        raise refuse("dataset.palette", name, expected)
    if not found:
        expected = f"a name in dataset.class_names, 0 to {len(names) - 1}, or {VOID} for void"
        raise refuse("dataset.palette", name, expected)
    return found.pop()


def _read_colours(name: str, written: list) -> set[Colour]:
    """The colours of a class: [R, G, B], or a list of such."""
    colours = written if written and all(isinstance(one, list) for one in written) else [written]
    if not all(len(colour) == 3 and all(map(_is_byte, colour)) for colour in colours):
        expected = "[R, G, B] with 0 to 255 each, or a list of such colours"
        raise refuse(f"dataset.palette.{name}", written, expected)
    return {tuple(colour) for colour in colours}


def _is_value(text: str) -> bool:
    """Whether a text is a value of a mask as Python writes it: no sign, no zeros before it."""
    digits = text.isascii() and text.isdecimal() and len(text) <= len(str(MOST_VALUE))
    return digits and text == str(int(text)) and int(text) <= MOST_VALUE


def _is_byte(value: object) -> bool:
    return type(value) is int and 0 <= value <= 255


def as_json(table: Mapping[int, object | Iterable]) -> dict[str, object]:
    """A table as the identity of a cache keeps it: by text, tuples as lists."""
    return {
        str(key): [list(one) for one in value] if isinstance(value, list) else value
        for key, value in table.items()
    }
