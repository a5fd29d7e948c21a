"""`--grid`: a matrix of runs from one cache, each with its baseline; stopped and failed ones are
gone on with.
"""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
import torch
import yaml

from kdcache.cache.reader import CacheReader
from kdcache.config.parser import merge
from kdcache.errors import CacheCorruptError, SettingsError, TrainingError
from kdcache.storage.lock import hold_folder
from kdcache.training import loop, run
from kdcache.training.grid import read_grid, split_list
from kdcache.training.grid_runs import name_run
from kdcache.training.run_folder import LAST
from tests.support.helpers import check_one_line
from train_student.cli import main as train_student

GRID = ["--grid", "loss.beta=0,0.5", "loss.gamma=0,0.3"]


@pytest.fixture
def start(built_root, given, tmp_path):
    """`python -m train_student` with these words behind the settings of a quick run; gives the exit
    code.
    """
    changes = {
        "cache": {"path": str(built_root)},
        "train": {"epochs": 1},
        "run": {"dir": str(tmp_path / "runs")},
    }
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(merge(given, changes)))
    return lambda *words: train_student(["--config", str(path), *words])


def list_runs(tmp_path) -> dict[str, dict]:
    """Finished runs: what differs -> result."""
    found = {}
    for folder in (tmp_path / "runs").iterdir():
        if (folder / "result.json").is_file():
            result = json.loads((folder / "result.json").read_text())
            facts = result["hyperparameters"]
            found[(facts["loss.beta"], facts["loss.gamma"], facts["train.seed"])] = result
    return found


# --- what a grid is


def test_a_grid_is_every_combination_of_its_values():
    grid = read_grid(["loss.beta=0,0.5", "cache.levels=[low],[low,high]"], "3")
    assert grid.points() == [
        {"loss.beta": "0", "cache.levels": "[low]"},
        {"loss.beta": "0", "cache.levels": "[low,high]"},
        {"loss.beta": "0.5", "cache.levels": "[low]"},
        {"loss.beta": "0.5", "cache.levels": "[low,high]"},
    ]
    assert grid.seeds == (3,) and read_grid(["loss.beta=1"], None).seeds == (0, 1, 2)
    assert read_grid([], "1,2").points() == [{}]
    assert split_list("a, {b: [1,2]},c") == ["a", "{b: [1,2]}", "c"]


def test_a_grid_may_stand_in_a_file(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        "loss: {beta: [0, 0.5]}\ncache.levels: [[low], [low, high]]\nstudent.arch: [a.b:c]\nseeds: "
        "[4, 5]\n"
    )
    grid = read_grid([str(path)], None)
    assert dict(grid.values) == {
        "loss.beta": ("0", "0.5"),
        "cache.levels": ('["low"]', '["low", "high"]'),
        "student.arch": ("a.b:c",),
    }
    assert grid.seeds == (4, 5) and read_grid([str(path)], "7").seeds == (7,)


@pytest.mark.parametrize(
    ("words", "seeds", "parts"),
    [
        (["train.seed=0,1"], None, ["train.seed is part of the grid, expected --seeds"]),
        (["run.dir=a,b"], None, ["run.dir is part of the grid, expected what one cache can vary"]),
        (["cache.path=a,b"], None, ["cache.path is part of the grid"]),
        (["teacher.layers.low=a"], None, ["teacher.layers.low is part of the grid"]),
        (["loss.beta=0,0"], None, ["loss.beta is 0,0, expected each value once"]),
        (["loss.beta="], None, ["loss.beta is empty"]),
        (["loss.beta=0", "loss.beta=1"], None, ["loss.beta is given twice"]),
        (["loss.beta"], None, ["loss.beta is no grid, expected NAME=VALUE,VALUE or a YAML file"]),
        (["loss.beta=0"], "a", ["--seeds is a, expected different whole numbers"]),
        (["loss.beta=0"], "1,1", ["--seeds is 1,1"]),
        (["nowhere.yaml"], None, ["nowhere.yaml"]),
    ],
)
def test_what_is_no_grid_is_one_line(words, seeds, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError) as error:
        read_grid(words, seeds)
    check_one_line(error, *parts)


def test_a_file_of_single_values_says_what_to_write(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("loss.beta: 0.5\n")
    with pytest.raises(SettingsError) as error:
        read_grid([str(path)], None)
    check_one_line(error, f"{path}: loss.beta is 0.5, expected a list of values; write [0.5]")


def test_names_of_runs_are_plain_words():
    name = name_run({"cache.levels": '["low", "high"]', "student.arch": "a.b:c"}, 3)
    assert name == "cache.levels=low,high,student.arch=a.b_c,seed=3"


# --- refused before anything is trained


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--grid loss.betta=0,1", "loss.betta is unknown, expected loss.beta"),
        ("--grid loss.beta=0,-1", "loss.beta is -1.0, expected 0 to"),
        ("--grid loss.beta=0,x", "loss.beta is 'x'"),
        ("--grid augment.views=1,9", "number of cached views (augment.views) is 2, expected 9"),
        ("--grid loss.alpha=0 loss.beta=1,0 loss.gamma=0", "loss.alpha is 0.0"),
        (
            "--grid loss.beta=0.5,0.50",
            "loss.beta=0.50,seed=0 is the same as loss.beta=0.5,seed=0, expected different "
            "settings",
        ),
        ("--grid", "--grid has no value, expected NAME=VALUE,..."),
        ("--dry-run", "--dry-run is given alone, expected a grid to list"),
        (
            "--grid none.yaml",
            "none.yaml is unreadable (No such file or directory), expected a YAML file that is "
            "there",
        ),
        ("--seeds", "--seeds has no value, expected N,..."),
        ("--grid student.arch=absent:student", "student.arch absent:student is no such function"),
    ],
)
def test_a_point_that_cannot_be_is_refused_before_the_first_run(
    start, tmp_path, capsys, words, said
):
    assert start(*shlex.split(words)) in (1, 2)
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and "epoch" not in out
    assert not (tmp_path / "runs").exists()


def test_a_grid_may_vary_what_the_settings_beside_it_lack(start, tmp_path, capsys):
    (tmp_path / "base.yaml").write_text("loss: {alpha: 0, beta: 0, gamma: 0}")
    words = ("--config", str(tmp_path / "base.yaml"), "--seeds", "0", "--dry-run")
    assert start(*words, "--grid", "loss.gamma=0.3") == 0, capsys.readouterr().err


def test_the_folder_of_a_run_is_not_taken_for_a_folder_of_runs(start, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "config.yaml").write_text("train: {}\n")
    assert start(*GRID, "--seeds", "0") == 2
    assert "run.dir is the folder of a run, expected a folder of runs" in capsys.readouterr().err


def test_several_processes_are_refused(start, capsys, monkeypatch):
    monkeypatch.setattr("kdcache.training.processes.join_processes", lambda: Two())
    assert start(*GRID) == 2
    assert (
        "--grid is given to 2 processes, expected one process; start it without torchrun"
        in capsys.readouterr().err
    )


class Two:
    count, leads = 2, True

    def __enter__(self):
        return self

    def __exit__(self, *exc: object) -> None:
        pass


# --- what is trained


def test_every_point_is_trained_with_every_seed_beside_one_baseline_a_seed(start, tmp_path, capsys):
    assert start(*GRID, "--seeds", "0,1", "--dry-run") == 0
    assert (
        "8 runs, 2 of them with labels only" in capsys.readouterr().out
        and not (tmp_path / "runs").exists()
    )
    assert start(*GRID, "--seeds", "0,1") == 0
    out = capsys.readouterr().out
    runs = list_runs(tmp_path)
    assert set(runs) == {
        (beta, gamma, seed) for beta in (0, 0.5) for gamma in (0, 0.3) for seed in (0, 1)
    }
    for (beta, gamma, seed), result in runs.items():
        assert result["baseline_miou"] == (runs[0, 0, seed]["miou"] if beta or gamma else None)
    assert "run 1 of 8: baseline-" in out and "8 of 8 runs are finished" in out
    assert "to baseline, points" in out and "loss.beta 0.5, loss.gamma 0.3       2 " in out
    assert len(list((tmp_path / "runs").glob("*/report.html"))) == 8
    before = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()
    }
    assert start(*GRID, "--seeds", "0,1") == 0
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()
    } == before
    assert (
        start("--grid", "loss.beta=0.5,1", "loss.gamma=0", "--seeds", "0") == 0
    )  # one of them is there
    assert capsys.readouterr().out.count(", finished before\n") == 8 + 2
    assert (1, 0, 0) in list_runs(tmp_path)


def test_seeds_alone_repeat_a_run(start, tmp_path):
    assert start("--seeds", "0,1", "--run.baseline", "false", "--loss.gamma", "0") == 0
    assert set(list_runs(tmp_path)) == {(0.5, 0, 0), (0.5, 0, 1)}


def test_a_run_that_fails_does_not_stop_the_others(start, tmp_path, capsys, monkeypatch):
    train_step = loop.train_step

    def fail(learner, batch, *, where):
        if learner.loss.gamma and learner.loss.beta:
            raise TrainingError(f"{where}: loss is nan, expected a finite number")
        return train_step(learner, batch, where=where)

    monkeypatch.setattr(loop, "train_step", fail)
    assert start(*GRID, "--seeds", "0") == 1
    out, err = capsys.readouterr()
    assert "loss.beta=0.5,loss.gamma=0.3,seed=0: epoch 1 step 0: loss is nan" in out
    assert (
        "1 of 4 runs failed (loss.beta=0.5,loss.gamma=0.3,seed=0); mend" in err
        and len(list_runs(tmp_path)) == 3
    )
    monkeypatch.undo()
    assert start(*GRID, "--seeds", "0") == 0 and len(list_runs(tmp_path)) == 4


def test_what_another_process_trains_is_left_to_it(start, tmp_path, capsys):
    folder = tmp_path / "runs" / "loss.beta=0.5,seed=0"
    folder.mkdir(parents=True)
    with hold_folder(folder, wait=False):
        assert start("--grid", "loss.beta=0.5,1", "--seeds", "0") == 0
    out = capsys.readouterr().out
    assert "2 of 3 runs are finished; 1 are left to other processes, 0 failed" in out
    assert set(list_runs(tmp_path)) == {(0, 0, 0), (1, 0.3, 0)}


def test_a_grid_over_runs_of_other_settings_is_refused_before_anything_is_trained(
    start, tmp_path, capsys
):
    assert start("--grid", "loss.beta=0.5", "--seeds", "0") == 0
    before = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert start("--grid", "loss.beta=0.5", "--seeds", "0", "--train.epochs", "2", "--dry-run") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert (
        "train.epochs is 1, expected 2; resume with the settings of the run, or choose another "
        "run.dir" in line
    )
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == before


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("loss.beta: [0]\nloss.beta: [1]", "line 2 is loss.beta twice"),
        ("loss.beta: &same [0]\nloss.gamma: *same", "line 2 is an alias"),
        ("loss.beta: [0]\n\tloss.gamma: [1]", "line 2 is "),
    ],
)
def test_what_would_hide_a_mistake_in_a_grid_file_is_refused(tmp_path, text, reason):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        read_grid([str(path)], None)
    check_one_line(error, str(path), reason)


@pytest.mark.parametrize("text", ["", "- 1", "loss.beta: [0", "x" * 9, "\xff"])
def test_a_file_that_is_no_grid_says_what_one_is(tmp_path, text):
    path = tmp_path / "grid.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError) as error:
        read_grid([str(path)], None)
    check_one_line(
        error,
        str(path),
        "is no grid",
        "expected lists of values by name, as in `loss.beta: [0, 0.5]`",
    )


def test_a_baseline_that_was_finished_later_is_taken_up(start, tmp_path, monkeypatch):
    train_step = loop.train_step

    def fail(learner, batch, *, where):
        if not learner.loss.beta:
            raise ValueError(
                "Expected more than 1 value per channel when training"
            )  # as torch says it
        return train_step(learner, batch, where=where)

    monkeypatch.setattr(loop, "train_step", fail)
    words = ["--grid", "loss.beta=0.5", "loss.gamma=0", "--seeds", "0"]
    assert start(*words) == 1 and [r["baseline_miou"] for r in list_runs(tmp_path).values()] == [
        None
    ]
    monkeypatch.undo()
    assert start(*words) == 0
    runs = list_runs(tmp_path)
    assert (
        runs[0.5, 0, 0]["baseline_miou"] == runs[0, 0, 0]["miou"]
        and runs[0.5, 0, 0]["improvement_points"] is not None
    )
    (page,) = (tmp_path / "runs").glob("loss.beta*/report.html")
    assert "No baseline was trained" not in page.read_text()


def test_a_baseline_that_another_process_finishes_meanwhile_is_taken_up(
    start, tmp_path, capsys, monkeypatch
):
    """The other process has the baseline; it ends while ours trains the run that is compared with
    it.
    """
    words = ["--grid", "loss.beta=0.5", "loss.gamma=0", "--seeds", "0"]
    assert start(*words) == 0
    expected = list_runs(tmp_path)[0.5, 0, 0]
    (tmp_path / "runs").rename(tmp_path / "theirs")
    baseline = next((tmp_path / "theirs").glob("baseline-*"))
    folder = tmp_path / "runs" / baseline.name
    folder.mkdir(parents=True)
    finish = run.finish_run

    def finish_after_ours(*args):
        result = finish(*args)
        shutil.copytree(baseline, folder, dirs_exist_ok=True)
        return result

    monkeypatch.setattr(run, "finish_run", finish_after_ours)
    capsys.readouterr()
    with hold_folder(folder, wait=False):
        assert start(*words) == 0
    assert "1 of 2 runs are finished; 1 are left to other processes" in capsys.readouterr().out
    ours = list_runs(tmp_path)[0.5, 0, 0]
    names = ("miou", "baseline_miou", "baseline", "improvement_points")
    assert [ours[name] for name in names] == [expected[name] for name in names]
    assert ours["baseline_miou"] is not None


def test_each_is_the_student_it_would_be_alone_bit_for_bit(start, tmp_path, monkeypatch):
    assert start(*GRID, "--seeds", "0") == 0
    alone = ("--loss.beta", "0.5", "--loss.gamma", "0.3", "--train.seed", "0")
    assert start(*alone, "--run.dir", str(tmp_path / "alone" / "kd")) == 0
    (baseline,) = (tmp_path / "alone").glob("baseline-*")
    for one, other in (
        (baseline, tmp_path / "runs" / baseline.name),
        (tmp_path / "alone" / "kd", tmp_path / "runs" / "loss.beta=0.5,loss.gamma=0.3,seed=0"),
    ):
        a, b = (torch.load(path / LAST, weights_only=True) for path in (one, other))
        for part in ("model_state_dict", "alignment_state_dict"):
            assert a[part].keys() == b[part].keys()
            assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
        assert torch.equal(a["random_state"], b["random_state"])


def test_what_a_student_raises_is_one_line_and_ends_one_run(start, tmp_path, capsys, monkeypatch):
    train_step = loop.train_step

    def fail(learner, batch, *, where):
        if learner.loss.beta:
            raise ValueError("Expected more than 1 value per channel\nwhen training")
        return train_step(learner, batch, where=where)

    monkeypatch.setattr(loop, "train_step", fail)
    assert start("--grid", "loss.beta=0.5", "loss.gamma=0", "--seeds", "0") == 1
    out = capsys.readouterr().out
    assert (
        "failing in training (ValueError: Expected more than 1 value per channel); mend it" in out
    )
    assert set(list_runs(tmp_path)) == {(0, 0, 0)}


def test_a_run_that_was_stopped_goes_on_after_its_last_epoch(start, tmp_path, capsys, monkeypatch):
    words = ("--grid", "loss.beta=0.5", "--seeds", "0", "--train.epochs", "2")
    run_epoch = run.run_epoch

    def stop(config, *args, epoch, **options):
        if config.loss.beta and epoch == 2:
            raise KeyboardInterrupt
        return run_epoch(config, *args, epoch=epoch, **options)

    monkeypatch.setattr(run, "run_epoch", stop)
    assert start(*words) == 130
    monkeypatch.undo()
    capsys.readouterr()
    assert start(*words) == 0
    out = capsys.readouterr().out
    assert out.count("epoch 2/2") == 1 and "epoch 1/2" not in out
    assert len(list_runs(tmp_path)) == 2


def test_damage_in_the_cache_ends_all(start, tmp_path, capsys, monkeypatch):
    def refuse(self, slot, *, array, view, sample, maps=None):
        raise CacheCorruptError("caches/x", "sample 3 is damaged", cure="repair it")

    monkeypatch.setattr(CacheReader, "read_into", refuse)
    assert start(*GRID, "--seeds", "0") == 1
    out, err = capsys.readouterr()
    assert err == "train_student: caches/x: sample 3 is damaged; repair it\n"
    assert out.count("run 1 of 4") == 1 and "run 2 of 4" not in out


def test_words_behind_dry_run_are_no_part_of_it(start, capsys):
    assert start("--seeds", "0", "--dry-run", "loss.gamma=0") == 2
    assert "loss.gamma=0" in capsys.readouterr().err


def test_a_name_nested_and_dotted_in_one_grid_file_is_refused(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("loss: {beta: [0, 1]}\nloss.beta: [2]\n")
    with pytest.raises(SettingsError, match=r"loss\.beta is given twice in .*grid\.yaml"):
        read_grid([str(path)], None)
