"""Trust: no command writes through a link, whatever of its files or folders is one.

Each command is run once to learn which files and folders it writes. Then each of these is a link to
a file or a folder outside, or the unfinished file of that name is, and what is outside must stay.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import cache_teacher.cli
import train_student.cli
from kdcache.command import run_command
from kdcache.config.parser import merge
from kdcache.data.sample_set import write_sample_set
from kdcache.training.run_folder import METRICS, RESULT
from tests.support import quick
from tests.support.effort import FULL, quick_and_full
from tests.support.outside import Outside

Run = Callable[[Path], int]
CODES = (0, 1, 2)
ROOTS = ("stage", "set", "out")  # named on the command line: these may be links


@pytest.fixture
def outside(tmp_path) -> Outside:
    return Outside(tmp_path / "outside")


class Place:
    """A folder `here` in which a command writes, and copies of what it reads beside it."""

    def __init__(self, folder: Path, *, run: Path, cache: Path, given: dict) -> None:
        self.here, self.cache, self.given = folder / "here", cache, given
        shutil.copytree(run, self.here)
        (folder / "settings.yaml").write_text(yaml.safe_dump(given))
        self.config = ["--config", str(folder / "settings.yaml")]

    def student(self, *words: str) -> int:
        return train_student.cli.main(list(words))

    def teacher(self, *words: str) -> int:
        return cache_teacher.cli.main(list(words))

    def image(self) -> str:
        path = self.here.parent / "a.png"
        if not path.exists():
            from PIL import Image

            Image.new("RGB", (40, 40)).save(path)
        return str(path)

    def unfinish(self) -> None:
        """As if the run had been stopped before its end."""
        for name in (RESULT, METRICS, "report.html"):
            (self.here / name).unlink(missing_ok=True)


def _train(place: Place) -> int:
    return place.student(*place.config, "--run.resume", "--run.dir", str(place.here))


def _stage(place: Place) -> int:
    stage = str(place.here / "stage")
    (place.here / "stage").mkdir(exist_ok=True)
    new = ("--run.dir", str(place.here.parent / "other"), "--run.track", "none")
    code = place.student(*place.config, *new, "--cache.stage_dir", stage)
    shutil.rmtree(place.here.parent / "other", ignore_errors=True)
    return code


def _write_sample_set(place: Place) -> int:
    """A small one, which the command cannot be asked for."""
    small = {"num_train": 2, "num_val": 2, "size_px": 48}
    return run_command("sample-set", lambda: write_sample_set(place.here / "set", **small))


COMMANDS: dict[str, Callable[[Place], int]] = {
    "train": _train,
    "stage": _stage,
    "report": lambda p: p.student("report", str(p.here)),
    "predict": lambda p: p.student("predict", str(p.here), p.image()),
    "predict elsewhere": lambda p: p.student(
        "predict", str(p.here), p.image(), "--out", f"{p.here}/out"
    ),
    "export": lambda p: p.student("export", str(p.here), "--to", "safetensors"),
    "compare": lambda p: p.student(
        "compare", str(p.here), "--csv", f"{p.here}/c.csv", "--html", f"{p.here}/c.html"
    ),
    "view": lambda p: p.teacher("view", str(p.cache), "--out", f"{p.here}/view.html"),
    "pack": lambda p: p.teacher("export", str(p.cache), f"{p.here}/packed.h5"),
    "sample-set": _write_sample_set,
}


@pytest.fixture(scope="module")
def trained(quick_data, tmp_path_factory) -> tuple[Path, Path, dict]:
    """A run, its cache, and their settings. Read only."""
    root = tmp_path_factory.mktemp("trained")
    own = {"run": {"dir": str(root / "run"), "baseline": False, "track": "none"}}
    given = merge(quick.quick_given(quick_data, root / "cache"), own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
        quick.build_quick(quick_data, root / "cache")
        (root / "settings.yaml").write_text(yaml.safe_dump(given))
        assert train_student.cli.main(["--config", str(root / "settings.yaml")]) == 0
    return root / "run", root / "cache", given


@pytest.fixture
def make_place(trained, tmp_path) -> Callable[[str], Place]:
    def make(name: str) -> Place:
        run, cache, given = trained
        (tmp_path / name).mkdir()
        return Place(tmp_path / name, run=run, cache=cache, given=given)

    return make


def list_written(place: Place, command: str) -> list[str]:
    """Names of the files and folders that a command writes in its place."""
    if command == "train":
        place.unfinish()
    before = {path: path.lstat().st_ino for path in place.here.rglob("*")}
    assert COMMANDS[command](place) == 0
    after = {path: path.lstat().st_ino for path in place.here.rglob("*")}
    changed = [path for path in after if before.get(path) != after[path]]
    names = sorted(str(path.relative_to(place.here)) for path in changed)
    return [name for name in names if name not in ROOTS]


def plant(place: Place, name: str, target: Path) -> None:
    path = place.here / name
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def choose(names: list[str]) -> list[str]:
    """All but the many files of one kind: two of each folder."""
    of_folder: dict[str, list[str]] = {}
    for name in names:
        of_folder.setdefault(name.rpartition("/")[0], []).append(name)
    return [name for some in of_folder.values() for name in (some if len(some) < 9 else some[:2])]


@quick_and_full
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_writes_through_a_link(make_place, outside, capsys, command, effort):
    names = choose(list_written(make_place("first"), command))
    assert names
    names = names if effort == FULL else names[:: -(-len(names) // 9)]
    targets = ("folder", "precious", "nothing")[: 3 if effort == FULL else 2]
    tries = [(name, target) for name in names for target in targets]
    for number, (name, target) in enumerate(tries):
        goal = outside.folder if target == "folder" else outside.folder / target
        check_harmless(make_place(str(number)), command, {name: goal}, outside, capsys)


@pytest.mark.parametrize("target", ["precious", "nothing"])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_unfinished_is_nobodys(make_place, outside, tmp_path, capsys, command, target):
    names = list_written(make_place("first"), command)
    files = [name for name in names if not (tmp_path / "first/here" / name).is_dir()]
    links = {f"{name}.partial": outside.folder / target for name in files}
    place = make_place("second")
    if command != "pack":  # whose unfinished file is held while it is written
        assert check_harmless(place, command, links, outside, capsys) == 0
    links = {f"{name}.lock": outside.folder / target for name in files}
    check_harmless(make_place("third"), command, links, outside, capsys)


def check_harmless(
    place: Place, command: str, links: dict[str, Path], outside: Outside, capsys: object
) -> int:
    """Run a command on links: nothing outside changes; returns its exit code."""
    if command == "train":
        place.unfinish()
    for name, goal in links.items():
        plant(place, name, goal)
    capsys.readouterr()
    code = COMMANDS[command](place)
    lines = [line for line in capsys.readouterr().err.splitlines() if "s/s" not in line]
    assert outside.is_as_it_was(), (links, lines)
    complaints = [line for line in lines if not line.startswith("warning: ")]
    assert code in CODES and len(complaints) == (code != 0), (links, lines)
    shutil.rmtree(place.here.parent)
    return code


def test_a_hard_link_in_place_of_a_lease_is_not_written(quick_data, trained, tmp_path, outside):
    cache = Path(shutil.copytree(trained[1], tmp_path / "cache"))
    (cache / "commits/train-v0000-g00000.json").unlink()
    lease = cache / "leases/train-v0000-g00000"
    lease.parent.mkdir(exist_ok=True)
    os.link(outside.folder / "precious", lease)
    outside.keep()
    assert cache_teacher.cli.main(["gc", str(cache)]) == 0
    assert (outside.folder / "precious").read_text() == "mine"
