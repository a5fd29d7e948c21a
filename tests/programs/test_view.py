"""`python -m cache_teacher view`: where it writes, what it says, what it refuses."""

import shutil

import pytest

from cache_teacher.cli import main as cache_teacher
from kdcache.cache.layout import shard_key
from kdcache.cache.manifest import read_manifest
from kdcache.cache.pack import pack_cache
from tests.support import quick

pytestmark = pytest.mark.usefixtures("quick_teacher")


@pytest.fixture(scope="module")
def built(quick_data, tmp_path_factory):
    """A quick cache. Read only."""
    root = tmp_path_factory.mktemp("built") / "seen"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
        quick.build_quick(quick_data, root)
    return root


@pytest.fixture
def root(built, tmp_path, monkeypatch):
    """The cache, of this test alone; the test runs in the folder beside it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return shutil.copytree(built, tmp_path / "seen")


def check_refused(capsys, argv, *words, code=1):
    assert cache_teacher(["view", *map(str, argv)]) == code
    *_, line = capsys.readouterr().err.splitlines()
    missing = [word for word in words if word not in line]
    assert line.startswith("cache_teacher view: ") and not missing, (missing, line)


def list_all(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_name_is_that_of_the_cache_and_split_in_this_folder(root, tmp_path, capsys):
    before = list_all(root)
    assert cache_teacher(["view", str(root)]) == 0
    assert capsys.readouterr().out.startswith(
        "seen-val.html: 2 samples shown, 2 of 2 looked at, 0."
    )
    assert cache_teacher(["view", str(root), "--split", "train", "--samples", "2"]) == 0
    assert capsys.readouterr().out.startswith(
        "seen-train.html: 2 samples shown, 3 of 3 looked at, 0."
    )
    pack_cache(root, tmp_path / "packed.v2.h5")
    assert cache_teacher(["view", str(tmp_path / "packed.v2.h5")]) == 0
    assert {path.name for path in (tmp_path / "here").iterdir()} == {
        "seen-val.html",
        "seen-train.html",
        "packed.v2-val.html",
    }
    assert list_all(root) == before


def test_what_the_teacher_calls_wrongly_is_named(root, capsys):
    assert cache_teacher(["view", str(root)]) == 0
    assert "MB; mostly called something else: background, " in capsys.readouterr().out


def test_an_older_gallery_is_replaced_and_nothing_else(root, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert cache_teacher(["view", str(root), "--out", str(out), "--split", "train"]) == 0
    first = out.read_text()
    assert cache_teacher(["view", str(root), "--out", str(out)]) == 0
    assert out.read_text() != first
    for name, text in (("mine.html", "<html>mine</html>"), ("empty.html", "")):
        (tmp_path / name).write_text(text)
        check_refused(
            capsys,
            [root, "--out", tmp_path / name],
            name,
            "is there and no gallery",
            "choose it with --out",
        )
        assert (tmp_path / name).read_text() == text
    check_refused(capsys, [root, "--out", tmp_path], "is there and no gallery")


def test_nothing_is_written_into_a_cache(root, capsys, monkeypatch):
    before = list_all(root)
    check_refused(
        capsys, [root, "--out", root / "page.html"], "inside the cache", "choose it with --out"
    )
    monkeypatch.chdir(root / "train")
    check_refused(capsys, [".."], "seen-val.html", "inside the cache")
    assert list_all(root) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--samples", "0"], ["--samples is '0', expected a whole number from 1 to 1000"]),
        (["--samples", "many"], ["--samples is 'many', expected a whole number"]),
        (["--split", "test"], ["--split", "'test'", "val", "train"]),
        (["--out", "s3://bucket/page.html"], ["--out is ", "expected a path of this machine"]),
        (["--outt", "page.html"], ["--outt is unknown, expected --out"]),
    ],
)
def test_wrong_options_are_one_line(root, capsys, options, words):
    check_refused(capsys, [root, *options], *words, code=2)


def test_no_cache_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_refused(capsys, [tmp_path / "none"], "manifest.json is missing", "give the path of one")
    check_refused(capsys, [tmp_path / "none.h5"], "none.h5")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_one_line(root, capsys, tmp_path, monkeypatch):
    check_refused(
        capsys,
        [root, "--out", tmp_path / "no" / "page.html"],
        "folder",
        "is missing",
        "make it first",
    )

    def refuse(path, *args):
        raise PermissionError(13, "Permission denied", str(path))

    for step in ("write_file", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(f"kdcache.disk.{step}", refuse)
            words = "page.html", "cannot be written (Permission denied)", "--out"
            check_refused(capsys, [root, "--out", tmp_path / "page.html"], *words)
        assert not list(tmp_path.glob("page.html*"))


def test_a_half_built_cache_is_refused_where_it_is_half_built(root, capsys):
    (root / "commits" / "train-v0001-g00000.json").unlink()
    check_refused(capsys, [root, "--split", "train"], "shard groups of train", "train-v0001-g00000")
    assert cache_teacher(["view", str(root)]) == 0  # val is whole


def test_only_the_views_that_are_shown_must_be_there(quick_data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick.build_quick(quick_data, tmp_path / "seen", views=5)
    (tmp_path / "seen" / "commits" / "train-v0004-g00001.json").unlink()
    assert cache_teacher(["view", "seen", "--split", "train"]) == 0
    html = (tmp_path / "seen-train.html").read_text()
    assert "view 3:" in html and "view 4:" not in html


@pytest.mark.parametrize("array", ["label", "logits", "high", "image"])
def test_a_damaged_sample_is_named(root, capsys, tmp_path, array):
    layout = read_manifest(root).layouts["train"]
    path = root / shard_key(layout.array(array), layout.group(1, 0))
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    sample = f"train/{array} view 1 sample 'sample_train_0000' is damaged"
    check_refused(
        capsys, [root, "--split", "train"], sample, f"run `python -m cache_teacher repair {root}`"
    )
    assert not list((tmp_path / "here").iterdir())


def test_an_interruption_keeps_nothing(root, capsys, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("kdcache.report.gallery_samples._view_one", interrupt)
    check = cache_teacher(["view", str(root)])
    assert check == 130 and "interrupted; nothing is kept" in capsys.readouterr().err
    assert not list((tmp_path / "here").iterdir())
