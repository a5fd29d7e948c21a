"""Lists of samples, as people have them: an id or a picture's name a line, or pairs of paths.

A list is UTF-8 or, with a byte order mark, UTF-16; line ends of any system; `#` begins a comment.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from kdcache.data.pictures import ENDINGS, Sample
from kdcache.disk import MOST_LIST_BYTES, read_plain
from kdcache.errors import DataError, Phrase, describe, one_line

# no separators and no leading dot: an id can never leave its folder
SAMPLE_ID = re.compile(r"(?!\.)[\w.\-]+")
# of an image in folders below: each part is such an id
DEEP_ID = re.compile(rf"{SAMPLE_ID.pattern}(/{SAMPLE_ID.pattern})*")
MOST_WORDS = 5_000_000  # and line ends: a million pairs of paths; below 1 GB of memory
_COMMENT = re.compile(r"(?:^|\s)#.*")


def read_list(path: Path, *, base: Path, labels: str, least: int = 2) -> list[Sample]:
    """The samples of a list, in its order, all of different ids; pictures are not opened.

    A word is an id, of BASE/JPEGImages/ID.jpg and BASE/LABELS/ID.png, or the name of such a
    picture. A line of two paths names image and label below `base`: the list of trainaug that is
    passed around has `/JPEGImages/ID.jpg /SegmentationClassAug/ID.png`.

    Args:
        base: the folder VOC2012. labels: name of the folder of labels.
        least: this many samples, or more.

    Raises: DataError.
    """
    samples: dict[str, Sample] = {}

    def add(sample: Sample) -> None:  # at once: a list can be one id 100 million times
        if sample.id in samples:
            facts = {"found": Phrase(f"{sample.id!r} twice"), "expected": Phrase("all different")}
            raise DataError(describe(path, field="sample id", **facts, cure="mend it"))
        samples[sample.id] = sample

    for words in _read_lines(path):
        if len(words) == 2 and all("/" in word for word in words):
            add(_pair(path, base, *words))
            continue
        if len(words) == 2 and words[1] in ("1", "0", "-1"):
            expected = Phrase("an id alone, as in train.txt")
            cure = "take a list of all images, not one that says which show a class"
            facts = {"field": "line", "found": " ".join(words), "expected": expected}
            raise DataError(describe(path, **facts, cure=cure))
        for word in words:
            id = _strip_ending(path, unicodedata.normalize("NFC", word), base / "JPEGImages")
            image, label = base / "JPEGImages" / f"{id}.jpg", base / labels / f"{id}.png"
            add(Sample(id, _find_form(image), _find_form(label)))
    if len(samples) < least:
        expected = Phrase(f"{'two' if least == 2 else 'one'} or more")
        facts = {"field": "list", "found": Phrase(f"{len(samples)} ids"), "expected": expected}
        raise DataError(describe(path, **facts, cure="mend it"))
    return list(samples.values())


def _read_lines(path: Path) -> Iterator[list[str]]:
    """The words of each line that has some. Raises DataError."""
    if not path.is_file():
        cure = (
            "choose another dataset.train_split or dataset.val_split, or put the list there, an id "
            "a line"
        )
        facts = {"found": Phrase("missing"), "expected": Phrase("a file")}
        raise DataError(describe(path, field="split list", **facts, cure=cure))
    try:
        data = read_plain(path, most_bytes=MOST_LIST_BYTES)
        _check_length(path, data)
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        facts = {"field": "split list", "found": Phrase("no text"), "expected": Phrase("UTF-8")}
        raise DataError(describe(path, **facts, cure="write an id a line")) from None
    except OSError as error:
        reason = one_line(error.strerror or error)
        raise DataError(f"{path}: split list is unreadable ({reason}); mend that") from None
    lines = (_COMMENT.sub("", line).split() for line in text.splitlines())
    return (words for words in lines if words)


def _find_form(path: Path) -> Path:
    """The file of that name, in which an accent may be a letter of its own, as a Mac writes it."""
    apart = path.with_name(unicodedata.normalize("NFD", path.name))
    return apart if not path.name.isascii() and not path.exists() and apart.exists() else path


def _check_length(path: Path, data: bytes) -> None:
    """Raise DataError for more words than a list has, before they are told apart in memory."""
    count = sum(map(data.count, (b"\n", b"\r", b" ", b"\t")))
    if count > MOST_WORDS:
        facts = {"found": Phrase(f"{count} words"), "expected": Phrase(f"{MOST_WORDS} at most")}
        cure = "give a list, or a folder of images as dataset.images"
        raise DataError(describe(path, field="list", **facts, cure=cure))


def _strip_ending(path: Path, word: str, images: Path) -> str:
    """The id in a word of a list. Raises DataError."""
    if not SAMPLE_ID.fullmatch(word):
        facts = {"found": word, "expected": Phrase("letters, digits, _ - .")}
        raise DataError(describe(path, field="sample id", **facts, cure="one id a line"))
    stem, dot, ending = word.rpartition(".")
    # an id may itself end so, as in x.png.jpg
    is_name = stem and f"{dot}{ending}".lower() in ENDINGS
    return stem if is_name and not (images / f"{word}.jpg").is_file() else word


def _pair(path: Path, base: Path, image: str, label: str) -> Sample:
    """The sample of a line of two paths, which stay below `base`. Raises DataError."""
    ways = [way.removeprefix("/").split("/") for way in (image, label)]
    for word, way in zip((image, label), ways, strict=True):
        if not all(SAMPLE_ID.fullmatch(part) for part in way):
            expected, cure = Phrase("folders and a name below VOC2012"), "mend the line"
            raise DataError(describe(path, field="path", found=word, expected=expected, cure=cure))
    image_path, label_path = (base.joinpath(*way) for way in ways)
    if image_path.stem != label_path.stem:
        expected, cure = Phrase(f"that of {image_path.name}"), "mend the line"
        facts = {"field": "label", "found": label_path.name, "expected": expected}
        raise DataError(describe(path, **facts, cure=cure))
    return Sample(image_path.stem, image_path, label_path)
