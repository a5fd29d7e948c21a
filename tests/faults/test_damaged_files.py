"""Trust: files that are lost, cut, swapped, stale, foreign or links are found by their size and
checksums alone.

What the commands say about them is in the second half: an exit code, one line at most, never a
    traceback.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import crc32c
import numpy as np
import pytest

from cache_teacher.cli import main
from kdcache.cache.layout import SPLITS
from kdcache.config.parser import make_config, merge
from kdcache.precompute.build import build_cache
from tests.support import quick
from tests.support.reading import find_damaged_files, find_reading_errors, flipped, read_all

SHARD, RECORD = "train/mid/c/1/0/0/0/0", "commits/train-v0001-g00000.json"
SHORT = "train/mid/c/1/1/0/0/0"  # of one sample
KINDS = {
    "shard": SHARD,
    "commit_record": RECORD,
    "array_zarr_json": "train/mid/zarr.json",
    "split_zarr_json": "train/zarr.json",
    "root_zarr_json": "zarr.json",
    "manifest": "manifest.json",
}
MID_CHUNK = 6 * 4 * 4 * 2 + 4  # bytes of a sample of mid, with its checksum


@pytest.fixture(scope="module")
def stale_root(quick_data, tmp_path_factory) -> Path:
    """A cache of the same shapes and another seed."""
    root = tmp_path_factory.mktemp("stale") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
        build_cache(
            make_config(merge(quick.quick_given(quick_data, root), {"augment": {"seed": 1}}))
        )
    return root


@pytest.fixture
def root(whole_root, tmp_path) -> Path:
    """A finished cache of this test alone, with room beside it."""
    return Path(shutil.copytree(whole_root, tmp_path / "cache"))


def _write(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def _replace(make: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda path: (path.unlink(), make(path))


def _move(path: Path, new: Path) -> None:
    path.rename(new)
    path.symlink_to(new)


def _move_out(path: Path) -> None:
    """A link to the same file, or folder, outside of the cache."""
    _move(
        path, next(folder for folder in path.parents if folder.name == "cache").with_name("outside")
    )


HARMS = {
    "deleted": Path.unlink,
    "emptied": _write(lambda data: b""),
    "cut_by_a_byte": _write(lambda data: data[:-1]),
    "cut_to_half": _write(lambda data: data[: len(data) // 2]),
    "a_byte_longer": _write(lambda data: data + b"x"),
    "doubled": _write(lambda data: data + data),
    "zeroed": _write(lambda data: bytes(len(data))),
    "foreign": _write(lambda data: np.random.Generator(np.random.Philox(0)).bytes(len(data))),
    "a_folder": _replace(Path.mkdir),
    "a_fifo": _replace(os.mkfifo),
    "moved_behind_a_link": _move_out,
    "moved_aside_behind_a_link": lambda path: _move(path, path.with_name("aside")),
    "a_link_to_nowhere": _replace(lambda path: path.symlink_to("nowhere")),
    "unreadable": lambda path: path.chmod(0),
}


if os.geteuid() == 0:
    del HARMS["unreadable"]  # root reads everything


def _at(name: str, harm: Callable[[Path], object]) -> Callable[[Path, Path], set[str]]:
    """Do it to a file of a cache; the result is what must be found."""

    def case(root: Path, stale: Path) -> set[str]:
        harm(root / name)
        return {name}

    return case


def _write_index(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """A sound index that says something else; of the two samples of a shard it has 32 bytes."""

    def write(data: bytes) -> bytes:
        index = change(data[-36:-4])
        return data[:-36] + index + crc32c.crc32c(index).to_bytes(4, "little")

    return _write(write)


def _swap(first: str, second: str, *, chunk: int | None = None) -> Callable[[Path, Path], set[str]]:
    """Exchange two files, or that many bytes at their beginning; each keeps its size."""

    def swap(root: Path, stale: Path) -> set[str]:
        a, b = (root / first).read_bytes(), (root / second).read_bytes()
        for path, new, old in ((root / first, b, a), (root / second, a, b)):
            path.write_bytes(
                (new[:chunk] + (old[chunk:] if chunk else b""))[: len(old)].ljust(len(old), b"\0")
            )
        return {first, second}

    return swap


def _make_stale(*names: str, found: str) -> Callable[[Path, Path], set[str]]:
    """Files of the cache of another seed in place of ours."""

    def replace(root: Path, stale: Path) -> set[str]:
        for name in names:
            shutil.copy(stale / name, root / name)
        return {found}

    return replace


def _move_folder_out(name: str) -> Callable[[Path, Path], set[str]]:
    def move(root: Path, stale: Path) -> set[str]:
        files = {str(path.relative_to(root)) for path in (root / name).rglob("*") if path.is_file()}
        _move_out(root / name)
        return files

    return move


GROUP = [RECORD, *(f"train/{name}/c/1/0/0/0{'' if name == 'label' else '/0'}"
                   for name in ("image", "label", "logits", "low", "mid", "high"))]  # fmt: skip
CASES = {
    **{f"{kind}_{name}": _at(path, HARMS[name]) for kind, path in KINDS.items() for name in HARMS},
    "samples_swapped": _at(
        SHARD, _write(lambda data: data[MID_CHUNK:-36] + data[:MID_CHUNK] + data[-36:])
    ),
    "index_reordered": _at(SHARD, _write_index(lambda index: index[16:] + index[:16])),
    "index_of_a_sample_too_many": _at(SHORT, _write_index(lambda index: 2 * index[:16])),
    "chunks_of_two_groups_swapped": _swap(SHARD, SHORT, chunk=MID_CHUNK),
    "shards_of_two_groups_swapped": _swap(SHARD, SHORT),
    "shards_of_two_views_swapped": _swap(SHARD, "train/mid/c/0/0/0/0/0"),
    "shards_of_two_arrays_swapped": _swap(SHARD, "train/logits/c/1/0/0/0/0"),
    "shards_of_two_splits_swapped": _swap("train/image/c/0/0/0/0/0", "val/image/c/0/0/0/0/0"),
    "records_of_two_views_swapped": _swap(RECORD, "commits/train-v0000-g00000.json"),
    "records_of_two_splits_swapped": _swap(RECORD, "commits/val-v0000-g00000.json"),
    "zarr_json_of_two_arrays_swapped": _swap("train/mid/zarr.json", "train/logits/zarr.json"),
    "stale_shard": _make_stale(SHARD, found=SHARD),
    "stale_record": _make_stale(RECORD, found=RECORD),
    "stale_group": _make_stale(*GROUP, found=RECORD),
    "stale_manifest": _make_stale("manifest.json", found="commits/train-v0000-g00000.json"),
    "array_behind_a_link": _move_folder_out("train/low"),
    "split_behind_a_link": _move_folder_out("train"),
    "records_behind_a_link": _move_folder_out("commits"),
}


@pytest.fixture(scope="module")
def truth(whole_root) -> dict:
    """What the cache holds."""
    return {split: read_all(whole_root, split) for split in SPLITS}


@pytest.mark.parametrize("case", CASES)
def test_structure_finds_it_and_no_reader_hands_out_wrong_numbers(root, stale_root, truth, case):
    names = CASES[case](root, stale_root)
    assert names <= find_damaged_files(root)
    messages = find_reading_errors(root, truth)
    assert messages or case == "index_of_a_sample_too_many"  # which nobody reads
    for message in messages:
        forms = [
            (f"{root / n}: ", f"{root}: {n} is missing", f"first missing: {Path(n).stem}")
            for n in names
        ]
        assert any(form in message for form in sum(forms, ()))


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., tuple[int, str, list[str]]]:
    """Exit code, what was printed, and the lines on stderr but for progress."""
    monkeypatch.setattr(
        "kdcache.command._show_warnings", lambda: None
    )  # on the stderr of this test alone

    def run_command(*argv: object) -> tuple[int, str, list[str]]:
        code = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return code, out, [line for line in err.splitlines() if "s/s" not in line]

    return run_command


@pytest.mark.parametrize("case", CASES)
def test_commands_end_in_a_code_and_a_line_and_repair_heals_what_it_can(
    root, stale_root, whole, run, case
):
    names = CASES[case](root, stale_root)
    code, out, lines = run("verify", root)
    assert (code == 1 and any(name in out for name in names) and not lines) or (
        names == {"manifest.json"}
        and code == (2 if case == "manifest_deleted" else 1)
        and len(lines) == 1
    )
    for command in (
        ["info"],
        ["info", "--json"],
        ["verify", "--json"],
        ["gc", "--dry-run"],
        ["gc"],
        ["repair"],
    ):
        code, _, lines = run(command[0], root, *command[1:])
        assert (
            code in (0, 1, 2)
            and len(lines) <= 1
            and all(line.startswith("cache_teacher ") for line in lines)
        )
    if code == 0:
        assert run("verify", root, "--data")[0] == 0
        assert whole.items() <= quick.snapshot(root).items() or case == "stale_manifest"
    else:
        assert any(word in case for word in ("manifest", "folder", "behind"))


def test_a_sound_cache_ends_with_0(root, run):
    for options in ([], ["--data"], ["--subset", "5%"], ["--subset", "1/3"], ["--subset", "100%"]):
        assert run("verify", root, *options)[::2] == (0, [])
    report = json.loads(run("verify", root, "--json")[1])
    assert report["sound"] and report["complete"] and report["groups"] == len(quick.GROUPS)


@pytest.mark.parametrize(
    "place, what",
    [("nowhere", "a kdcache cache"), ("file", "a packed cache"), ("empty", "a kdcache cache")],
)
def test_what_is_no_cache_ends_with_2(tmp_path, run, place, what):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    code, _, lines = run("verify", tmp_path / place)
    assert code == 2 and len(lines) == 1 and f"expected {what}" in lines[0]
    assert list((tmp_path / "empty").iterdir()) == []


BAD_SUBSETS = [
    "0%",
    "101%",
    "4/3",
    "0/3",
    "1/0",
    "x",
    "",
    "%",
    "-5%",
    "nan%",
    "1e1%",
    "5",
    "1/2/3",
    "1/" + "9" * 5000,
]


@pytest.mark.parametrize("text", BAD_SUBSETS, ids=lambda text: text[:8])
def test_a_bad_subset_ends_with_2(root, run, text):
    code, _, lines = run("verify", root, f"--subset={text}")
    assert (
        code == 2 and len(lines) == 1 and "expected a share above 0% up to 100%, or N/T" in lines[0]
    )


def test_parts_of_the_data_are_read_once_in_all_parts_together(root, run):
    with flipped(root / SHARD, 5):
        assert run("verify", root)[0] == 0 and run("verify", root, "--data")[0] == 1
        assert run("verify", root, "--subset", "100%")[0] == 1
        parts = [run("verify", root, "--subset", f"{part}/3", "--json") for part in (1, 2, 3)]
        assert sorted(code for code, _, _ in parts) == [0, 0, 1]
        damage = [flaw for _, out, _ in parts for flaw in json.loads(out)["damage"]]
    assert [(flaw["file"], flaw["sample"]) for flaw in damage] == [(SHARD, "sample_train_0000")]
