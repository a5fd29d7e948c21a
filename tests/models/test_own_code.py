"""The file of a student is found and hashed without running it."""

from __future__ import annotations

import sys

import pytest

from kdcache.errors import SettingsError
from kdcache.models.own_code import (
    MOST_SOURCE_BYTES,
    Trust,
    hash_file,
    hash_source,
    hash_source_unseen,
)
from tests.support.helpers import check_one_line

SOUND = "def build(num_classes):\n    pass\n"


@pytest.mark.parametrize("arch", ["own_student:plain", "torchvision.models:resnet18"])
def test_it_is_the_hash_that_an_import_gives(arch):
    assert hash_source_unseen(arch) == hash_source(arch)


@pytest.mark.parametrize(
    "line",
    [
        "from .inner import build",
        "from pack_of_mine.inner import build",
        "from pack_of_mine.inner import build as build",
        "from . import inner\nfrom .between import made as build",
        "from .empty import *\nfrom .inner import *",
    ],
)
def test_it_follows_a_name_that_is_only_passed_on(line, tmp_path, monkeypatch):
    folder = tmp_path / "pack_of_mine"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit\n" + line)
    (folder / "between.py").write_text("from .inner import build as made")
    (folder / "inner.py").write_text(SOUND)
    (folder / "empty.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert hash_source_unseen("pack_of_mine:build") == hash_file(folder / "inner.py")
    assert hash_source_unseen("pack_of_mine.inner:build") == hash_file(folder / "inner.py")
    assert "pack_of_mine" not in sys.modules


def test_a_circle_of_names_ends(tmp_path, monkeypatch):
    (tmp_path / "round_a.py").write_text("from round_b import build")
    (tmp_path / "round_b.py").write_text("from round_a import build")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(hash_source_unseen("round_a:build")) == 64


@pytest.mark.parametrize("arch", ["no_such_module:f", "math:sqrt", "a.b.c:d", "", "..:x", "x"])
def test_what_has_no_file_has_no_hash(arch):
    assert hash_source_unseen(arch) is None


@pytest.mark.parametrize(
    ("cut", "is_trusted"), [(64, True), (12, True), (0, False), (1, False), (63, False)]
)
def test_a_recorded_hash_has_64_digits_or_the_12_of_before(cut, is_trusted):
    source = hash_source("own_student:plain")
    trust = Trust("own_student:plain")
    if is_trusted:
        trust.check("own_student:plain", source=source[:cut], where="run")
    for other in (source[:cut], "0" * 64, source[:12] + "0" * 52)[is_trusted:]:
        with pytest.raises(SettingsError) as error:
            trust.check("own_student:plain", source=other, where="run")
        check_one_line(error, "run: file of student.arch own_student:plain is", "restore that file")


def test_a_source_that_is_too_large_is_neither_read_nor_trusted(tmp_path, monkeypatch):
    with (tmp_path / "large_student.py").open("w") as file:
        file.truncate(MOST_SOURCE_BYTES + 1)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SettingsError) as error:
        Trust("large_student:f").check("large_student:f", source="0" * 64, where="run")
    check_one_line(error, "large_student.py: source of large_student:f size is 4194305 bytes")


def test_only_what_was_named_is_trusted():
    Trust().check("mobilenetv3_small", source=None, where="run")
    Trust(any_code=True).check("mine:tiny", source=None, where="run")
    Trust("mine:tiny").check("mine:tiny", source=None, where="run")
    for trust in (Trust(), Trust("mine:other")):
        with pytest.raises(SettingsError) as error:
            trust.check("mine:tiny", source=None, where="run")
        check_one_line(error, "run: student.arch is 'mine:tiny'", "add --student.arch mine:tiny")
