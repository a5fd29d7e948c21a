"""A refused command leaves every byte of a run's folder as it was, and its times; and a process
whose lock was removed by hand writes no more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import yaml

import train_student.cli
from kdcache.cache import lifecycle
from kdcache.cache.pack import pack_cache
from kdcache.config.parser import make_config, merge
from kdcache.machine.process import LockLostError
from kdcache.models import fit
from kdcache.models.fit_files import hold_output
from kdcache.storage import open_storage
from kdcache.storage.lock import LOCK, hold_folder
from kdcache.training import planned_run
from kdcache.training.distill import distill
from kdcache.training.run_folder import BEST, LAST, METRICS, RESULT, SETTINGS
from tests.support import quick
from tests.support.helpers import check_one_line

DONE, HALF, PARTLY = "runs/done", "runs/half", "runs/partly"
GO_ON = "--config given.yaml --run.resume --run.dir "
SETTINGS_OF_OTHERS = {
    "another program": "{hydra: {run: {dir: out}}, lr: 0.1}\n",
    "a few of ours": "train: {epochs: 2, batch_size: 2}\n",
    "no settings": "- one\n- two\n",
    "no text": "\x00\x01",
    "nothing": "",
}


@pytest.fixture(scope="module")
def world(quick_data, tmp_path_factory) -> Path:
    """Two caches; a finished run, one that was stopped after an epoch, one before. Read only."""
    root = tmp_path_factory.mktemp("refused") / "world"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
        for name, views in (("cache", quick.NUM_VIEWS), ("other", 1)):
            quick.build_quick(quick_data, Path(name), views=views)
        given = merge(
            quick.quick_given(quick_data, Path("cache")),
            {"run": {"track": "none", "baseline": False, "dir": DONE}},
        )
        Path("given.yaml").write_text(yaml.safe_dump(given))
        distill(given, root=Path("cache"))
        for name in (HALF, PARTLY):
            shutil.copytree(DONE, name)
            (Path(name) / RESULT).unlink()
        for name in (BEST, LAST, METRICS):
            (Path(PARTLY) / name).unlink()
        for name, text in SETTINGS_OF_OTHERS.items():
            (Path("others") / name).mkdir(parents=True)
            (Path("others") / name / SETTINGS).write_text(text)
        shutil.copytree(DONE, "twice")
        (Path("twice") / RESULT).rename("twice/mine.json")
        shutil.copy(next(quick_data.rglob("JPEGImages/*.jpg")), "a.png")
    return root


def look(folder: Path) -> dict[str, tuple]:
    """Everything that a write would change, by name."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_ino,
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in [folder, *folder.rglob("*")]
    }


@contextmanager
def spoiled(path: Path) -> Iterator[None]:
    """A flipped bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    yield


REFUSED: dict[str, tuple[str, str, Callable]] = {
    "in use": (DONE, f"--config given.yaml --run.dir {DONE}", nullcontext),
    "a setting": (DONE, f"{GO_ON}{DONE} --loss.beta 0.25", nullcontext),
    "a setting, half": (HALF, f"{GO_ON}{HALF} --train.lr 0.5", nullcontext),
    "a setting, no epoch": (PARTLY, f"{GO_ON}{PARTLY} --train.seed 3", nullcontext),
    "no setting": (HALF, f"{GO_ON}{HALF} --train.epochs -1", nullcontext),
    "no device": (HALF, f"{GO_ON}{HALF} --train.device cuda:99", nullcontext),
    "a cache": (HALF, f"{GO_ON}{HALF} --cache.path other --augment.views 1", nullcontext),
    "no cache": (HALF, f"{GO_ON}{HALF} --cache.path nothing", nullcontext),
    "no memory": (HALF, f"{GO_ON}{HALF} --train.residency gpu", nullcontext),
    "no stage": (HALF, f"{GO_ON}{HALF} --cache.stage_dir a.png", nullcontext),
    "another process": (HALF, f"{GO_ON}{HALF}", lambda: hold_folder(Path(HALF))),
    "damage to last": (HALF, f"{GO_ON}{HALF}", lambda: spoiled(Path(HALF) / LAST)),
    "damage to result": (DONE, f"{GO_ON}{DONE}", lambda: spoiled(Path(DONE) / RESULT)),
    "damage to metrics": (DONE, f"report {DONE}", lambda: spoiled(Path(DONE) / METRICS)),
    "report unfinished": (HALF, f"report {HALF}", nullcontext),
    "report elsewhere": (DONE, f"report {DONE} --cache.path other", nullcontext),
    "predict nothing": (DONE, f"predict {DONE} no.png --out {DONE}/a.png", nullcontext),
    "predict damaged": (DONE, f"predict {DONE} a.png", lambda: spoiled(Path(DONE) / BEST)),
    "export damaged": (
        DONE, f"export {DONE} --to safetensors", lambda: spoiled(Path(DONE) / BEST)
    ),
    "compare nowhere": (DONE, f"compare {DONE} --csv {DONE}/no/t.csv", nullcontext),
    "compare damaged": (
        DONE, f"compare {DONE} --csv {DONE}/t.csv", lambda: spoiled(Path(DONE) / RESULT)
    ),
    "grid of a run": (DONE, f"--config given.yaml --run.dir {DONE} --grid loss.beta=0,1",
                      nullcontext),
    **{
        f"settings of {name}": (f"others/{name}", f"{GO_ON}others/{name}", nullcontext)
        for name in SETTINGS_OF_OTHERS
    },
    "settings of another run": ("twice", f"{GO_ON}twice --loss.gamma 0.9", nullcontext),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_command_changes_nothing(here, capsys, name):
    folder, command, meanwhile = REFUSED[name]
    if name == "predict nothing":
        (Path(DONE) / "a.png").write_bytes(b"")  # a file where a folder is to be
    words = command.replace(f"others/{name[12:]}", "OTHERS").split()
    with meanwhile():
        before = look(Path(folder))
        code = train_student.cli.main([word.replace("OTHERS", folder) for word in words])
        assert look(Path(folder)) == before
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out: " not in line]
    assert code in (1, 2) and len(lines) == 1, lines


@pytest.mark.parametrize("name", [HALF, PARTLY])
def test_what_is_not_refused_goes_on(here, name):
    left = Path(name) / f"{LAST}.0123abcd.partial"  # of a killed process
    left.write_bytes(b"half of it")
    assert train_student.cli.main(f"{GO_ON}{name}".split()) == 0
    assert (Path(name) / RESULT).is_file() and not left.exists()


def test_a_run_killed_before_its_settings_were_whole_goes_on(here):
    for number, left in enumerate((f"{SETTINGS}.partial", f"{SETTINGS}.0123abcd.partial", LOCK)):
        Path(f"new{number}").mkdir()
        (Path(f"new{number}") / left).write_text("")
        assert train_student.cli.main(f"{GO_ON}new{number}".split()) == 0


def remove_lock_in(folder: Path) -> None:
    """As somebody does by hand, and another process takes the lock anew."""
    (folder / LOCK).unlink()
    os.close(os.open(folder / LOCK, os.O_CREAT))


@pytest.mark.parametrize("step", ["save_run", "finish_run", "begin_folder"])
def test_a_run_whose_lock_was_removed_writes_no_more(here, monkeypatch, capsys, step):
    real, before = getattr(planned_run, step), {}

    def remove(*args: object) -> object:
        remove_lock_in(Path(HALF))
        before.update(look(Path(HALF)))
        return real(*args)

    monkeypatch.setattr(f"kdcache.training.run.{step}", remove)
    if step == "save_run":
        shutil.copy(Path(PARTLY) / SETTINGS, Path(HALF) / SETTINGS)
        for name in (LAST, BEST, METRICS):
            (Path(HALF) / name).unlink()
    assert train_student.cli.main(f"{GO_ON}{HALF}".split()) == 1
    assert look(Path(HALF)) == before
    lines = [line for line in capsys.readouterr().err.splitlines() if "s/s" not in line]
    assert len(lines) == 1 and f"{HALF}/.lock: lock was removed while it was held" in lines[0]


def test_documents_of_a_cache_are_not_written_without_its_lock(here):
    storage = open_storage(Path("cache"))
    for _ in range(2):
        with storage.lock(), pytest.raises(LockLostError) as error:
            remove_lock_in(Path("cache"))
            storage.replace("manifest.json", b"{}")
        check_one_line(error, "cache/.lock: lock was removed", "run the same command again")
    lifecycle.add_information(storage, {"fine": True})


def test_a_fit_whose_lock_was_removed_writes_nothing(quick_data, tmp_path, monkeypatch):
    given = quick.quick_given(quick_data, tmp_path / "cache")
    given |= {"fit": {"epochs": 1, "batch_size": 2, "out": str(tmp_path / "t.pth")}}
    given["teacher"] |= {"weights": str(tmp_path / "t.pth")}
    real = fit._run

    def run(*args: object, **options: object) -> None:
        real(*args, **options)
        (tmp_path / "t.pth.lock").unlink()

    monkeypatch.setattr(fit, "_run", run)
    with pytest.raises(LockLostError) as error:
        fit.fit_teacher(make_config(given))
    check_one_line(error, "t.pth.lock: lock was removed while it was held")
    assert not list(tmp_path.glob("t.pth*"))
    with hold_output(tmp_path / "t.pth") as check:
        check()


def test_another_process_packs_into_the_name_of_an_unfinished_file_that_was_removed(
    here, monkeypatch
):
    real = Path("new.h5.partial")

    def read_back(partial: Path, progress: object) -> None:
        real.unlink()
        real.write_bytes(b"half of another's")

    monkeypatch.setattr("kdcache.cache.pack._read_back", read_back)
    with pytest.raises(LockLostError):
        pack_cache(Path("cache"), Path("new.h5"))
    assert not Path("new.h5").exists() and real.read_bytes() == b"half of another's"
