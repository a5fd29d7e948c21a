"""Trust: caches, archives and checkpoints from strangers can neither write outside of their folder
nor run code.
"""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import cache_teacher.cli
import train_student.cli
from kdcache.cache.reader import open_split
from kdcache.config import DatasetConfig
from kdcache.data.voc import download_voc
from kdcache.errors import CacheCorruptError, DataError, TrainingError
from kdcache.models.teacher import build_teacher
from kdcache.seals import seal_json
from kdcache.training.checkpoint import read_checkpoint
from tests.support import quick
from tests.support.helpers import (
    ARCHIVE,
    Trap,
    check_one_line,
    point_torchvision_at,
    save_label,
    serve,
    write_trap,
    write_voc,
)
from tests.support.outside import Outside
from tests.support.reading import find_damaged_files

RECORD, SHARD = "commits/train-v0001-g00000.json", "train/mid/c/1/0/0/0/0"


@pytest.fixture
def root(whole_root, tmp_path) -> Path:
    """A finished cache of this test alone."""
    return Path(shutil.copytree(whole_root, tmp_path / "cache"))


@pytest.fixture
def run(capsys, monkeypatch, quick_data, root, tmp_path) -> Callable[..., tuple[int, list[str]]]:
    """Run a command with the settings of the cache: its exit code, and stderr but for progress."""
    monkeypatch.setattr(
        "kdcache.command._show_warnings", lambda: None
    )  # on the stderr of this test alone
    programs = {"build": cache_teacher.cli.main, "train": train_student.cli.main}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(quick.quick_given(quick_data, root)))

    def run_command(command: str, *argv: str) -> tuple[int, list[str]]:
        words = (
            [command, str(root)]
            if command not in programs
            else ["--config", str(tmp_path / "settings.yaml")]
        )
        code = programs.get(command, cache_teacher.cli.main)([*words, *argv])
        return code, [line for line in capsys.readouterr().err.splitlines() if "s/s" not in line]

    return run_command


# --- sample ids


@pytest.mark.parametrize(
    "bad",
    [
        "../evil",
        "a//b",
        "a/",
        "a/../b",
        "a/.b",
        "/etc/passwd",
        "..",
        ".hidden",
        "",
        "a\nb",
        "a b",
        "a\\b",
        "\x00",
        "\ud800",
    ],
)
def test_a_sample_id_that_could_leave_its_folder_is_refused(root, bad):
    document = json.loads((root / RECORD).read_text())
    del document["sha256"]
    document["sample_ids"][0] = bad
    (root / RECORD).write_bytes(seal_json(document))
    with pytest.raises(CacheCorruptError) as error:
        open_split(root, "train").locate("label", 1, 0)
    words = "commit record is damaged (a sample id is not letters, digits, _ - . and / between"
    check_one_line(error, f"{RECORD}: {words}")
    assert find_damaged_files(root) == {RECORD}


# --- archives


def _member(name: str, **changes: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for field, value in changes.items():
        setattr(member, field, value)
    return member


LINK, HARD_LINK = {"type": tarfile.SYMTYPE}, {"type": tarfile.LNKTYPE}
MEMBERS = {
    "above": [_member("../evil")],
    "far_above": [_member("VOCdevkit/../../../evil")],
    "absolute": [_member("{outside}/evil")],
    "link_out": [_member("VOCdevkit/link", linkname="{outside}", **LINK)],
    "file_behind_a_link": [_member("link", linkname="../outside", **LINK), _member("link/evil")],
    "file_over_a_link": [_member("link", linkname="../outside/precious", **LINK), _member("link")],
    "hard_link_out": [
        _member("link", linkname="../outside/precious", **HARD_LINK),
        _member("link"),
    ],
    "device": [_member("VOCdevkit/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_an_archive_unpacks_nothing_outside_of_its_folder(tmp_path, monkeypatch, outside, kind):
    write_voc(tmp_path / "data", {"train": ["a", "b"]})
    (tmp_path / "served").mkdir()
    archive = tmp_path / "served" / ARCHIVE
    with tarfile.open(archive, "w") as tar:
        for member in MEMBERS[kind]:
            named = _member(
                member.name.format(outside=outside.folder),
                type=member.type,
                size=0 if member.linkname else 4,
            )
            named.linkname = member.linkname.format(outside=outside.folder)
            tar.addfile(named, io.BytesIO(b"evil"))
        tar.add(tmp_path / "data" / "VOCdevkit", "VOCdevkit")
    config = DatasetConfig(root=tmp_path / "new", num_classes=3, download=True)
    with serve(archive.parent, monkeypatch) as url:
        point_torchvision_at(monkeypatch, url, hashlib.md5(archive.read_bytes()).hexdigest())
        if kind == "absolute":  # is unpacked below the folder
            download_voc(config)
        else:
            with pytest.raises(DataError) as error:
                download_voc(config)
            check_one_line(error, str(config.root), "the download failed")
    outside.check()
    assert not list(tmp_path.rglob("evil")) or kind == "absolute"


# --- checkpoints


@pytest.mark.parametrize("container", ["pickle", "torch", "torch_legacy"])
def test_code_in_the_checkpoint_of_a_run_is_not_run(root, run, tmp_path, container):
    folder, trace = tmp_path / "runs" / "kd", tmp_path / "executed"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    write_trap(folder / "student_kd_last.pth", Trap(trace), container=container)
    code, lines = run("train", "--run.resume", "--run.baseline", "false", "--run.dir", str(folder))
    assert (
        code == 1
        and len(lines) == 1
        and "student_kd_last.pth: checkpoint is unreadable" in lines[0]
    )
    assert not trace.exists()


@pytest.mark.parametrize("container", ["pickle", "torch", "torch_legacy"])
def test_code_in_the_teachers_weights_is_not_run(run, tmp_path, monkeypatch, container):
    monkeypatch.setattr("kdcache.precompute.build.build_teacher", build_teacher)
    write_trap(tmp_path / "trap.pth", Trap(tmp_path / "executed"), container=container)
    code, lines = run(
        "build",
        "--teacher.weights",
        str(tmp_path / "trap.pth"),
        "--cache.path",
        str(tmp_path / "new"),
    )
    assert (
        code == 1
        and len(lines) == 1
        and "trap.pth: teacher.weights is unreadable as plain tensors" in lines[0]
    )
    assert not (tmp_path / "executed").exists() and not (tmp_path / "new").exists()


BROKEN = [
    b"",
    b"\x80\x020.",
    b"\x80\x02}q\x00(X\x01\x00",
    b"PK\x03\x04" + bytes(100),
    bytes(1000),
    b"<html>",
    b"\x80\x05.",
]


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
def test_a_checkpoint_of_other_bytes_is_one_line(tmp_path, data):
    (tmp_path / "bad.pth").write_bytes(data)
    with pytest.raises(TrainingError) as error:
        read_checkpoint(tmp_path / "bad.pth")
    check_one_line(error, "bad.pth: checkpoint is unreadable")


@pytest.mark.parametrize(
    "contents", [5, [], {}, {"hyperparameters": 5, "cache_identity": None}], ids=range(4)
)
def test_a_checkpoint_of_something_else_is_one_line(run, tmp_path, contents):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    torch.save(contents, tmp_path / "run" / "student_kd_last.pth")
    code, lines = run(
        "train", "--run.resume", "--run.baseline", "false", "--run.dir", str(tmp_path / "run")
    )
    assert (
        code == 1
        and len(lines) == 1
        and "student_kd_last.pth: checkpoint is unreadable" in lines[0]
    )


# --- links


@pytest.fixture
def outside(tmp_path) -> Outside:
    return Outside(tmp_path / "outside")


FOLDERS = ["commits", "leases", "train", "val", "train/mid", "train/mid/c", "train/mid/c/1/0"]


@pytest.mark.parametrize("command", ["build", "grow", "repair", "gc"])
@pytest.mark.parametrize("name", FOLDERS)
def test_nothing_is_written_behind_a_folder_that_is_a_link(root, run, outside, name, command):
    (root / RECORD).unlink()  # there is work to do
    (root / "train/low/zarr.json").unlink()
    (root / "train/mid/c/1/0/0/0/0.partial").touch()
    (root / "leases" / "train-v0001-g00000").touch()
    (root / name).rename(outside.folder / "moved")
    (root / name).symlink_to(outside.folder / "moved")
    outside.keep()
    code, lines = run(*{"grow": ("build", "--augment.views", "3")}.get(command, (command,)))
    assert code == 0 or (code == 1 and len(lines) == 1 and "it is behind a link" in lines[0])
    outside.check()


@pytest.mark.parametrize("command", ["build", "grow", "repair", "gc", "verify"])
@pytest.mark.parametrize("name", ["train/mid/c/1", "train/mid", "val", "leases"])
def test_no_folder_of_a_cache_is_another_one_of_it(root, whole, run, name, command):
    """A link from one view's folder to another's: committed files were destroyed."""
    other = {
        "train/mid/c/1": "train/mid/c/0", "train/mid": "train/low", "val": "train",
        "leases": "commits",
    }[name]  # fmt: skip
    (root / RECORD).unlink()
    (root / name).rename(root.parent / "moved")
    (root / name).symlink_to(root / other)
    before = quick.snapshot(root / other)
    before = {path: data for path, data in before.items() if not path.endswith("zarr.json")}
    code, lines = run(*{"grow": ("build", "--augment.views", "3")}.get(command, (command,)))
    assert code in (0, 1) and (command == "verify" or len(lines) <= 1)
    if code and command != "verify":
        assert "it is behind a link" in lines[0], lines
    after = quick.snapshot(root / other)
    assert before.items() <= after.items() and (root / name).is_symlink()


FILES = [
    "manifest.json",
    "zarr.json",
    "train/mid/zarr.json",
    RECORD,
    SHARD,
    ".lock",
    "leases/train-v0001-g00000",
]


@pytest.mark.parametrize("command", ["build", "repair", "gc"])
@pytest.mark.parametrize("target", ["precious", "nothing"])
@pytest.mark.parametrize("ending", ["", ".partial"])
@pytest.mark.parametrize("name", FILES)
def test_nothing_is_written_through_a_link_in_place_of_a_file(
    root, whole, run, outside, name, ending, target, command
):
    (root / RECORD).unlink()
    (root / "train/mid/zarr.json").unlink()
    (root / f"{name}{ending}").unlink(missing_ok=True)
    (root / f"{name}{ending}").symlink_to(outside.folder / target)
    code, lines = run(command)
    assert code in (0, 1) and len(lines) <= 1, lines
    outside.check()
    if ending:  # what is unfinished is nobody's: it is written anew, in place of the link
        assert code == 0, lines
        assert command == "gc" or whole.items() <= quick.snapshot(root).items()


def test_a_label_of_a_class_there_is_none_of_is_one_line(run, tmp_path, quick_data, monkeypatch):
    """Its checksums are right, and a loss on a GPU would end with the process."""
    data = Path(shutil.copytree(quick_data, tmp_path / "data"))
    for path in data.rglob("SegmentationClass/*.png"):
        save_label(path, np.where(np.asarray(Image.open(path)) == 1, 200, 0).astype(np.uint8))
    monkeypatch.setattr("kdcache.data.pictures.check_label", lambda *args, **facts: None)
    new = ["--dataset.root", str(data), "--cache.path", str(tmp_path / "new")]
    where = ["--cache.path", str(tmp_path / "new"), "--run.dir", str(tmp_path / "run")]
    for words in (["build", *new], ["train", *where, "--run.baseline", "false"]):
        code, lines = run(*words)
        lines = [line for line in lines if not line.startswith("warning: ")]
        assert (code, len(lines)) == (1, 1), lines
        assert "it has class 200, expected 0 to 7 or 255" in lines[0]
    reader = open_split(tmp_path / "new", "train")

    def is_refused(sample: int) -> bool:
        try:
            reader.read("label", 0, sample)
        except CacheCorruptError:
            return True
        return False

    first, second = ([is_refused(n) for n in range(reader.layout.num_samples)] for _ in range(2))
    assert any(first) and first == second
