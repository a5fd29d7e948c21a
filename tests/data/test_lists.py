"""Lists of samples as people have them: what is said in another way is the same list."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kdcache.data.lists import MOST_WORDS, read_list
from kdcache.errors import DataError
from tests.support.helpers import check_one_line

IDS = ["2007_000027", "été", "b-3.x"]
LINES = "\n".join(IDS) + "\n"
PAIRS = "".join(f"/JPEGImages/{id}.jpg /SegmentationClassAug/{id}.png\n" for id in IDS)


def read_as(folder: Path, data: bytes) -> list:
    (folder / "train.txt").write_bytes(data)
    return read_list(folder / "train.txt", base=folder, labels="SegmentationClass")


@pytest.mark.parametrize(
    "data",
    [
        LINES.encode("utf-8-sig"),
        LINES.encode("utf-16"),
        b"\xfe\xff" + LINES.encode("utf-16-be"),
        LINES.replace("\n", "\r\n").encode(),
        LINES.replace("\n", "\r\n").encode("utf-16"),
        f"# my list\n\n{IDS[0]}  # the first\n  \n{IDS[1]}\t\n#{IDS[0]}\n{IDS[2]}".encode(),
        "\n".join(f"{id}.jpg" for id in IDS).encode(),
        "\n".join(f"{id}.PNG" for id in IDS).encode(),
    ],
    ids=["BOM", "UTF-16", "UTF-16 BE", "CRLF", "UTF-16 CRLF", "comments", ".jpg", ".PNG"],
)
def test_the_same_list_written_in_another_way(tmp_path: Path, data: bytes):
    samples = read_as(tmp_path, data)
    assert samples == read_as(tmp_path, LINES.encode())
    assert [sample.id for sample in samples] == IDS
    assert samples[1].image_path == tmp_path / "JPEGImages" / "été.jpg"
    assert samples[1].label_path == tmp_path / "SegmentationClass" / "été.png"


def test_ending_that_belongs_to_the_id_stays(tmp_path: Path):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "JPEGImages" / "a.png.jpg").touch()
    assert [sample.id for sample in read_as(tmp_path, b"a.png\nb.png\n")] == ["a.png", "b"]


@pytest.mark.parametrize("pairs", [PAIRS, PAIRS.replace(" /", "\t").replace("/J", "J")])
def test_pairs_of_paths_name_image_and_label(tmp_path: Path, pairs: str):
    samples = read_as(tmp_path, pairs.encode())
    assert [sample.id for sample in samples] == IDS
    assert samples[0].image_path == tmp_path / "JPEGImages" / f"{IDS[0]}.jpg"
    assert samples[0].label_path == tmp_path / "SegmentationClassAug" / f"{IDS[0]}.png"


@pytest.mark.parametrize(
    "bad",
    [
        "../a.jpg b/a.png",
        "a/a.jpg ../../a.png",
        "a/./a.jpg b/a.png",
        "//etc/a.jpg b/a.png",
        "a/a.jpg b/.a.png",
        "a/a.jpg b\\/a.png",
    ],
)
def test_pair_that_could_leave_the_data_set_is_refused(tmp_path: Path, bad: str):
    with pytest.raises(DataError) as error:
        read_as(tmp_path, f"{PAIRS}{bad}\n".encode())
    check_one_line(error, "train.txt: path is", "below VOC2012")


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"a/x.jpg b/y.png\n", ["label is 'y.png'", "that of x.jpg"]),
        (b"x.jpg\nx.png\n", ["sample id is 'x' twice"]),
        (b"/JPEGImages/x.jpg\n", ["sample id is '/JPEGImages/x.jpg'"]),
        (b"a/x.jpg b/x.png c/x.png\n", ["sample id is 'a/x.jpg'"]),
        (b"a#b\nc\n", ["sample id is 'a#b'"]),
        (b"# a\n# b\n", ["list is 0 ids, expected two or more"]),
        (b"a\n", ["list is 1 ids, expected two or more"]),
        (b"\xff\xfea\0b", ["no text", "UTF-8"]),
        ("a\nb\n".encode("utf-16-le"), ["sample id is"]),
    ],
)
def test_list_that_says_no_samples_is_refused_in_a_line(tmp_path: Path, data: bytes, parts: list):
    with pytest.raises(DataError) as error:
        read_as(tmp_path, data)
    check_one_line(error, "train.txt: ", *parts)


@pytest.mark.parametrize(
    ("word", "words"), [(b"a\n", "sample id is 'a' twice"), (b"a  ", "words, expected")]
)
def test_a_list_without_end_is_one_line_at_once(tmp_path: Path, word: bytes, words: str):
    """A file of 10 MB once took 3 GB."""
    began_s = time.monotonic()
    with pytest.raises(DataError) as error:
        read_as(tmp_path, word * MOST_WORDS)
    check_one_line(error, "train.txt: ", words)
    assert time.monotonic() - began_s < 10
