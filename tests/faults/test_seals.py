"""Damage to a file of a run, a teacher or an export is one line before the file is used; files of
before have no seal and still work; and no kill leaves a file with another file's seal.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import cache_teacher.cli
import train_student.cli
from kdcache import disk, seals
from kdcache.cache.reader import open_split
from kdcache.cache.verify import verify_cache
from kdcache.config.parser import make_config, merge
from kdcache.deploy.export import check_export
from kdcache.errors import KdcacheError
from kdcache.models.fit_files import read_state, save_teacher, write_state
from kdcache.models.weights import read_teacher_weights
from kdcache.report.cache_text import format_findings
from kdcache.storage import open_storage
from kdcache.training.checkpoint import read_checkpoint
from kdcache.training.distill import distill
from kdcache.training.run_folder import BEST, LAST, METRICS, RESULT, read_history, read_result
from tests.faults import children
from tests.support import quick
from tests.support.effort import choose_steps, get_settings, quick_and_full
from tests.support.helpers import check_one_line
from tests.support.reading import flipped

TEACHER, EXPORT = "t.pth", "student.safetensors"
ARCH = "fcn_resnet50"
READERS: dict[str, Callable[[Path], object]] = {
    LAST: lambda run: read_checkpoint(run / LAST),
    BEST: lambda run: read_checkpoint(run / BEST),
    RESULT: read_result,
    METRICS: lambda run: read_history(run, read_result(run)),
    TEACHER: lambda run: read_teacher_weights(ARCH, str(run / TEACHER)),
    f"{TEACHER}.state": lambda run: read_state(run / TEACHER, whose={}),
    EXPORT: lambda run: check_export(run / EXPORT),
    f"{EXPORT}.sha256": lambda run: check_export(run / EXPORT),
}
TENSORS = (LAST, BEST, TEACHER, f"{TEACHER}.state")
COMMANDS = {
    LAST: ("--config given.yaml --run.dir half --run.resume",),
    BEST: ("predict run a.png --out out", "export run --to safetensors", "report run"),
    RESULT: ("report run", "--config given.yaml --run.dir run --run.resume"),
    METRICS: ("report run",),
}


@pytest.fixture(scope="module")
def world(quick_data, tmp_path_factory) -> Path:
    """A cache, a finished and a half run with a teacher, a state and an export. Read only."""
    root = tmp_path_factory.mktemp("sealed") / "world"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
        quick.build_quick(quick_data, root / "cache")
    own = {"run": {"track": "none", "baseline": False, "dir": "run"}}
    given = merge(quick.quick_given(quick_data, root / "cache"), own)
    (root / "given.yaml").write_text(yaml.safe_dump(given))
    distill(merge(given, {"run": {"dir": str(root / "run")}}), root=root / "cache")
    assert train_student.cli.main(["export", str(root / "run"), "--to", "safetensors"]) == 0
    config = make_config(given)
    save_teacher(root / "run" / TEACHER, {"w": torch.ones(3)}, config, facts={"miou": 0.5})
    write_state(root / "run" / TEACHER, make_state())
    shutil.copytree(root / "run", root / "half")
    (root / "half" / RESULT).unlink()
    shutil.copy(next(quick_data.rglob("JPEGImages/*.jpg")), root / "a.png")
    return root


def make_state() -> dict:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    return {
        "whose": {},
        "epoch": 1,
        "history": [{"epoch": 1, "loss": 0.5, "miou": None}],
        "best": None,
        "average": None,
        "model": {"w": torch.ones(2)},
        "schedule": {},
        "optimizer": optimizer.state_dict(),
    }


def student(command: str, capsys: pytest.CaptureFixture) -> tuple[int, list[str]]:
    """The exit code and the lines on stderr that are no progress."""
    capsys.readouterr()
    code = train_student.cli.main(command.split())
    return code, [line for line in capsys.readouterr().err.splitlines() if "s/s" not in line]


@quick_and_full
@pytest.mark.parametrize("name", READERS)
def test_any_flipped_bit_is_one_line(here, name, effort):
    run, path = here / "run", here / "run" / name
    READERS[name](run)
    size = path.stat().st_size
    ends = st.integers(0, 800) | st.integers(8 * size - 900, 8 * size - 1)  # of an archive

    @get_settings(effort)
    @given(ends | st.integers(0, 8 * size - 1))
    def flip(bit):
        with flipped(path, bit % (8 * size)):
            if name.endswith(".sha256") and bit % (8 * size) >= 8 * 64:
                return  # the file's name behind the digits is for people
            with pytest.raises(KdcacheError) as error:
                READERS[name](run)
        check_one_line(error, str(run / name.removesuffix(".sha256")), "; ")

    flip()
    READERS[name](run)


@pytest.mark.parametrize(
    ("name", "command"), [(name, one) for name, some in COMMANDS.items() for one in some]
)
def test_every_command_compares_before_it_uses(here, capsys, name, command):
    path = here / ("half" if name == LAST else "run") / name
    size = path.stat().st_size
    words = "sha256 is [0-9a-f]{12}, expected [0-9a-f]{12} as it was written"
    at = path.read_bytes().index(b" 0.") + 4 if path.suffix != ".pth" else size // 2
    with flipped(path, 8 * at):
        code, lines = student(command, capsys)
    assert code == 1 and len(lines) == 1
    assert re.search(words, lines[0]), lines
    assert str(path.relative_to(here)) in lines[0]


def test_compare_leaves_a_damaged_run_out_and_names_it(here, capsys):
    for name in (RESULT, METRICS):
        with flipped(here / "run" / name, 8 * ((here / "run" / name).stat().st_size // 2)):
            code, lines = student("compare run", capsys)
        assert code == 2 and f"warning: left out: run/{name}: " in lines[0]


@pytest.mark.parametrize("name", TENSORS)
def test_a_seal_that_was_cut_off_is_missed(here, name):
    path = here / "run" / name
    data = path.read_bytes()[: -len(b"kdcache seal sha256 ") - 64]
    path.write_bytes(data[:-2] + bytes(2))  # as torch.save has written it
    torch.load(path, weights_only=True)
    with pytest.raises(KdcacheError) as error:
        READERS[name](here / "run")
    check_one_line(error, str(path), "seal is missing, expected one as its field 'sealed' says")


@pytest.mark.parametrize("field", ["sealed", "sha256", "both"])
def test_a_result_without_its_seal_is_missed_while_a_checkpoint_has_one(here, field):
    path = here / "run" / RESULT
    result = json.loads(path.read_text())
    for name in ("sealed", "sha256") if field == "both" else (field,):
        del result[name]
    path.write_text(json.dumps(result, indent=1))
    with pytest.raises(KdcacheError) as error:
        read_result(here / "run")
    check_one_line(error, str(path), "seal is missing or damaged, expected", "--run.resume")
    path.unlink()  # what the line says
    config = yaml.safe_load((here / "given.yaml").read_text())
    resumed = merge(config, {"run": {"resume": True, "dir": str(here / "run")}})
    distill(resumed, root=here / "cache")
    read_result(here / "run")


def unseal(run: Path) -> None:
    """Make the files of a run what version 0.1 wrote."""
    for path in run.glob("*.pth*"):
        state = torch.load(path, weights_only=True)
        del state["sealed"]
        torch.save(state, path)
    if (run / RESULT).exists():
        result = json.loads((run / RESULT).read_text())
        del result["sealed"], result["sha256"]
        (run / RESULT).write_text(json.dumps(result, indent=1))
    for path in run.glob("*.sha256"):
        path.unlink()


@pytest.mark.parametrize(
    "command", ["report run", "compare run half", "predict run a.png", *COMMANDS[LAST]]
)
def test_files_of_before_work_and_say_so_once(here, capsys, command):
    for run in (here / "run", here / "half"):
        unseal(run)
    for _ in range(2):  # each command says it again
        code, lines = student(command, capsys)
        notices = [line for line in lines if "unsealed (before 0.2)" in line]
        assert code == 0 and len(notices) == 1 and notices[0].startswith("warning: "), lines
        shutil.rmtree(here / "half")
        shutil.copytree(here / "run", here / "half")
        (here / "half" / RESULT).unlink()


@pytest.mark.parametrize("name", [TEACHER, f"{TEACHER}.state", EXPORT])
def test_a_teacher_and_an_export_of_before_say_so(here, caplog, name):
    unseal(here / "run")
    seals.forget_told()
    READERS[name](here / "run")
    assert caplog.text.count("unsealed (before 0.2)") == 1


def test_a_teacher_of_others_needs_no_seal(tmp_path, caplog):
    torch.save({"w": torch.ones(2)}, tmp_path / "other.pth")
    read_teacher_weights(ARCH, str(tmp_path / "other.pth"))
    assert not caplog.text


@pytest.mark.parametrize("name", TENSORS)
def test_plain_torch_reads_a_sealed_file_and_anybody_can_check_it(here, name):
    path = here / "run" / name
    for mmap in (False, True):
        torch.load(path, weights_only=True, mmap=mmap)
    torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
    data = path.read_bytes()
    assert hashlib.sha256(data[:-64]).hexdigest().encode() == data[-64:]


def test_the_seal_beside_an_export_is_one_of_sha256sum(here):
    digest, name = (here / "run" / f"{EXPORT}.sha256").read_text().split()
    data = (here / "run" / EXPORT).read_bytes()
    assert (digest, name) == (hashlib.sha256(data).hexdigest(), EXPORT)


@quick_and_full
def test_killed_at_any_step_a_run_goes_on(world, tmp_path, monkeypatch, effort):
    config = yaml.safe_load((world / "given.yaml").read_text())

    def train(folder: Path) -> dict:
        own = {"run": {"resume": True, "dir": str(folder)}}
        return distill(merge(config, own), root=world / "cache").student

    with monkeypatch.context() as patch:
        names = children.meet(children.die, step=-2, setattr=patch.setattr)
        whole = train(tmp_path / "whole")
    for step in choose_steps(names, effort):
        with monkeypatch.context() as patch, pytest.raises(children.Killed):
            children.meet(children.die, step=step, setattr=patch.setattr)
            train(tmp_path / str(step))
        result = train(tmp_path / str(step))
        assert result["miou"] == whole["miou"]
        assert result == read_result(tmp_path / str(step))
        read_history(tmp_path / str(step), result)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("name", [name for name in READERS if not name.startswith(EXPORT)])
def test_what_the_system_refuses_to_read_is_not_to_be_deleted(here, monkeypatch, name, code):
    real = os.open

    def refuse(path: object, *args: object, **options: object) -> int:
        if Path(path).name == name:
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *args, **options)

    with monkeypatch.context() as patch, pytest.raises(KdcacheError) as error:
        patch.setattr("kdcache.disk.os.open", refuse)
        READERS[name](here / "run")
    words = (str(here / "run" / name), os.strerror(code), "; mend that and run the same command")
    check_one_line(error, *words)
    assert "delete" not in str(error.value)


@pytest.mark.parametrize("name", ["manifest.json", "train-v0000-g00000.json", "low/c/0/0/0/0/0"])
def test_files_of_a_cache_that_may_not_be_read_are_not_to_be_repaired(here, monkeypatch, name):
    real = disk.open_descriptor

    def refuse(path: object, flags: int) -> int:
        if str(path).endswith(name):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, flags)

    monkeypatch.setattr(disk, "open_descriptor", refuse)
    with pytest.raises(KdcacheError) as error:
        open_split(here / "cache", "train").read("low", 0, 0)
    check_one_line(error, "Permission denied", "; mend that and run the same command again")
    if name != "manifest.json":
        text = format_findings(verify_cache(here / "cache"), open_storage(here / "cache"))
        assert text.endswith("\nmend that and run the same command again")


def test_a_fit_goes_on_only_from_a_sound_state(here, capsys):
    settings = yaml.safe_load((here / "given.yaml").read_text())
    settings["fit"] = {"out": "run/t.pth", "epochs": 1}
    settings["teacher"]["weights"] = "run/t.pth"
    (here / "given.yaml").write_text(yaml.safe_dump(settings))
    state = here / "run" / f"{TEACHER}.state"
    capsys.readouterr()
    with flipped(state, 8 * (state.stat().st_size // 2)):
        assert cache_teacher.cli.main(["fit", "--config", "given.yaml"]) == 1
    assert "t.pth.state: state is unreadable (sha256 is" in capsys.readouterr().err
