"""The gain study at a size of seconds: what is trained on what, and that it is trained once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from kdcache.cache.manifest import read_manifest
from kdcache.config.parser import merge
from kdcache.data.voc import VOC_DIR
from kdcache.storage import open_storage
from kdcache.training.loop import train_epoch, train_step
from tests.study.__main__ import main
from tests.study.gain import results
from tests.study.gain.jobs import Place, plan_jobs
from tests.study.gain.plan import Block, read_study
from tests.study.gain.points import read_lists

EPOCH = "kdcache.training.loop.train_epoch"
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.xdist_group("study")  # its caches are made once

STUDY = {
    "name": "tiny",
    "lists": {"train": "train", "val": "val"},
    "every": [2, 1],
    "students": {"scratch": {}},
    "arms": {
        "labels": {"loss.beta": 0, "train.unlabelled_share": 0.5},
        "kl": {"loss.beta": 1, "loss.temperature": 1, "train.unlabelled_share": 0.5},
        "pseudo": {"loss.beta": 0, "loss.pseudo": 1, "train.unlabelled_share": 0.5},
        "recipe": {"loss.beta": 1, "loss.temperature": 1, "loss.pseudo": 1,
                   "train.unlabelled_share": 0.5},
    },
    "baseline": "labels",
    "teachers": {
        "all": {"knows": "fitted on all labels"},
        "few": {"knows": "fitted on the same", "fit": {"fit": {"epochs": 1, "batch_size": 4}}},
        "half": {"knows": "fitted on five labels", "every": 2, "fit": {"fit": {"epochs": 1}}},
    },
    "budgets": [3, 6],
    "picture": ["labels", "recipe"],
    "goals": [{"arm": "recipe", "labels": 5, "teacher": "all", "budget": 3, "over": 5, "mean": 99}],
    "grids": {
        "report": [
            {"every": [2], "arms": ["labels", "recipe"], "budgets": [3], "teachers": ["all"],
             "seeds": 2},
            {"every": [1], "arms": ["labels", "kl", "pseudo", "recipe"], "budgets": [3],
             "teachers": ["all", "few"], "seeds": 1},
        ],
        "choose": [
            {"every": [2], "arms": ["kl"], "budgets": [3], "teachers": ["all"], "seeds": 1}
        ],
    },
    "step_s": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def study_file(base_given, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("study") / "tiny.yaml"
    kept = {name: base_given[name] for name in ("dataset", "augment", "student", "train")}
    kept["dataset"] = {k: v for k, v in kept["dataset"].items() if k not in ("root", "download")}
    settings = merge(kept, {"loss": {"gamma": 0}, "teacher": {"batch_size": 4, "device": "cpu"}})
    settings["train"] = {k: v for k, v in kept["train"].items() if k != "epochs"}
    path.write_text(yaml.safe_dump({**STUDY, "settings": settings}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def words(study_file, voc_root, teacher_file) -> list[str]:
    """Options that name study, data and teacher."""
    return ["--config", str(study_file), "--root", str(voc_root), "--teacher", str(teacher_file)]


@pytest.fixture(scope="module")
def trained(words, tmp_path_factory) -> tuple[Path, list[list[str]]]:
    """The runs with five labels of seed 0, of both arms, and the ids of every batch. Read only."""
    out, batches = tmp_path_factory.mktemp("finished") / "out", []

    def look_on(learner, batch, **more):
        batches.append(list(batch.sample_ids))
        return train_step(learner, batch, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.training.loop.train_step", look_on)
        assert gain(words, out, "--labels", "5", "--seeds", "0") == 0
    return out, batches


@pytest.fixture(scope="module")
def finished(trained) -> Path:
    """The folder of `trained`."""
    return trained[0]


def gain(words: list[str], out: Path, *options: str) -> int:
    return main(["gain", *words, "--out", str(out), *options])


def read_results(out: Path, half: str = "report") -> list[dict]:
    return [json.loads(line) for line in (out / half / "results.jsonl").read_text().splitlines()]


def test_two_arms_differ_in_the_teacher_alone_and_have_equal_steps(finished):
    labels, recipe = read_results(finished)
    assert (labels["arm"], labels["teacher"]) == ("labels", None)
    assert (recipe["arm"], recipe["teacher"]) == ("recipe", "all")
    for line in (labels, recipe):
        assert (line["labels"], line["budget"], line["steps"], line["seed"]) == (5, 3, 3, 0)
        assert 0 <= line["last_miou"] <= line["best_miou"] <= 1 and line["seconds"] > 0
        (state,) = [json.loads(path.read_text()) for path in find(finished, line, "result.json")]
        assert line["last_miou"] == pytest.approx(state["last_miou"], abs=1e-5)
        assert state["hyperparameters"]["train.unlabelled_share"] == 0.5
        assert not find(finished, line, "*.pth")


def test_the_baseline_draws_labelled_images_only_in_as_many_steps(trained, voc_root):
    ids = (voc_root / VOC_DIR / "ImageSets/Segmentation/train.txt").read_text().split()
    labels, recipe = trained[1][:3], trained[1][3:]
    assert [len(batch) for batch in (*labels, *recipe)] == [4] * 6
    assert {id for batch in labels for id in batch} == set(ids[::2])
    assert all(sum(id in ids[::2] for id in batch) == 2 for batch in recipe)


def find(out: Path, line: dict, pattern: str) -> list[Path]:
    (folder,) = (out / "report/runs").glob(f"{line['arm']}-{line['labels']}labels-*")
    return list(folder.glob(pattern))


def test_a_point_sees_every_kth_label_and_no_image_of_val_without_one(finished, voc_root):
    ids = (voc_root / VOC_DIR / "ImageSets/Segmentation/train.txt").read_text().split()
    val = (voc_root / VOC_DIR / "ImageSets/Segmentation/val.txt").read_text().split()
    base = finished / "report/data/5" / VOC_DIR
    lists = {p.stem: p.read_text().split() for p in (base / "ImageSets/Segmentation").iterdir()}
    assert lists == {"labelled": ids[::2], "others": ids[1::2], "val": val[3:]}
    has_label = {path.stem for path in (base / "SegmentationClass").iterdir()}
    assert has_label == {*ids[::2], *val[3:]}
    (cache,) = (finished / "report/caches").iterdir()
    layouts = read_manifest(open_storage(cache)).layouts
    assert {name: layout.num_samples for name, layout in layouts.items()} == {
        "train": 5,
        "val": 2,
        "unlabelled": 5,
    }


def test_finished_runs_and_whole_caches_are_left(words, finished, monkeypatch, capsys):
    before = (finished / "report/results.jsonl").read_text()
    monkeypatch.setattr(EPOCH, None)
    monkeypatch.setattr("tests.study.gain.train.build_cache", None)
    assert gain(words, finished, "--labels", "5", "--seeds", "0") == 0
    assert (finished / "report/results.jsonl").read_text() == before
    table = capsys.readouterr().out
    assert gain(words, finished, "--table") == 0
    assert capsys.readouterr().out == table and "| 5 | all | recipe | 1 |" in table


def test_what_is_left_is_listed_the_most_important_first_and_once(words, finished, capsys):
    assert gain(words, finished, "--dry-run") == 0
    *runs, end = capsys.readouterr().out.splitlines()
    assert [run.split()[-1] for run in runs] == [
        "labels-5labels-3steps-seed1",
        "recipe-5labels-all-3steps-seed1",
        "labels-10labels-3steps-seed0",
        "kl-10labels-all-3steps-seed0",  # recipe without unlabelled images
        "kl-10labels-few-3steps-seed0",
    ]
    assert end.startswith("5 runs are left of 7, 2 are finished")
    assert gain(words, finished, "--dry-run", "--only", "recipe", "--labels", "10") == 0
    assert "2 runs are left of 2" in capsys.readouterr().out


def test_recorded_runs_may_be_left_to_the_machine_that_trained_them(
    words, finished, tmp_path, monkeypatch, capsys
):
    recorded = tmp_path / "recorded.jsonl"
    monkeypatch.setattr(results, "RECORDED", recorded)
    lines = [{**line, "seed": 1} for line in read_results(finished)]
    results.record(lines, recorded)
    assert gain(words, tmp_path / "out", "--dry-run", "--unrecorded", "--labels", "5") == 0
    *runs, _ = capsys.readouterr().out.splitlines()
    assert [run.split()[-1] for run in runs] == [
        "labels-5labels-3steps-seed0",
        "recipe-5labels-all-3steps-seed0",
    ]


def test_a_cache_of_another_teacher_and_links_to_other_images_are_refused(
    words, finished, tmp_path, capsys, teacher_file, voc_root
):
    shutil.copytree(finished, tmp_path / "out", symlinks=True)
    state = torch.load(teacher_file, weights_only=True)
    torch.save({k: v + 1 if v.is_floating_point() else v for k, v in state.items()},
               tmp_path / "other.pth")  # fmt: skip
    other = [*words[:-1], str(tmp_path / "other.pth")]
    assert gain(other, tmp_path / "out", "--labels", "5") == 1
    assert "teacher.weights_sha256" in capsys.readouterr().err
    shutil.copytree(voc_root, tmp_path / "moved")
    moved = [*words[:3], str(tmp_path / "moved"), *words[4:]]
    assert gain(moved, tmp_path / "out", "--labels", "5") == 2
    assert "choose another --out for another data set" in capsys.readouterr().err


@pytest.mark.nightly
def test_halves_of_val_have_nothing_in_common(words, finished, tmp_path, voc_root):
    shutil.copytree(finished, tmp_path / "out", symlinks=True)
    assert gain(words, tmp_path / "out", "--half", "choose") == 0
    (line,) = read_results(tmp_path / "out", "choose")
    assert (line["half"], line["arm"]) == ("choose", "kl")
    assert {line["half"] for line in read_results(tmp_path / "out")} == {"report"}
    lists = [
        tmp_path / "out" / half / "data/5" / VOC_DIR / "ImageSets/Segmentation/val.txt"
        for half in ("choose", "report")
    ]
    val = (voc_root / VOC_DIR / "ImageSets/Segmentation/val.txt").read_text()
    assert "".join(path.read_text() for path in lists) == val


@pytest.mark.nightly
def test_a_stopped_study_goes_on_after_its_last_epoch(words, tmp_path, monkeypatch, study_file):
    given = yaml.safe_load(study_file.read_text())
    given["grids"]["report"] = [{**given["grids"]["report"][0], "budgets": [6]}]
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    options = ("--only", "recipe", "--seeds", "0")
    words = ["--config", str(tmp_path / "long.yaml"), *words[2:]]

    def stop_in_second(*args, epoch: int, **more):
        if epoch == 2:
            raise KeyboardInterrupt
        return train_epoch(*args, epoch=epoch, **more)

    with monkeypatch.context() as patch:
        patch.setattr(EPOCH, stop_in_second)
        assert gain(words, tmp_path / "out", *options) == 130
    (folder,) = (tmp_path / "out/report/runs").iterdir()
    first = (folder / "metrics.jsonl").read_text()
    assert len(first.splitlines()) == 1 and not (folder / "result.json").exists()
    assert gain(words, tmp_path / "out", *options) == 0
    assert (folder / "metrics.jsonl").read_text().startswith(first)
    assert read_results(tmp_path / "out")[0]["steps"] == 6


@pytest.mark.nightly
def test_a_teacher_is_fitted_to_the_labels_it_knows(words, study_file, tmp_path, voc_root):
    given = yaml.safe_load(study_file.read_text())
    given["grids"]["report"] = [{**given["grids"]["report"][0], "every": [1], "seeds": 1}]
    given["grids"]["report"][0] |= {"arms": ["kl"], "teachers": ["few", "half"]}
    (tmp_path / "fitted.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    words = ["--config", str(tmp_path / "fitted.yaml"), *words[2:]]
    assert gain(words, tmp_path / "out") == 0
    fitted = {
        path.parent.name: torch.load(path, weights_only=True)["model_state_dict"]
        for path in (tmp_path / "out/teachers").glob("*/teacher.pth")
    }
    assert set(fitted) == {"few-10", "half"}
    assert not torch.equal(*(state["backbone.conv1.weight"] for state in fitted.values()))
    assert {line["teacher"] for line in read_results(tmp_path / "out")} == {"few", "half"}
    assert (tmp_path / "out/choose/data/5").is_dir()


@pytest.mark.nightly
def test_two_processes_share_the_runs_and_a_fitted_teacher(words, finished, tmp_path):
    """Started twice at once, and with a process of its own: each run is trained by one of them."""
    shutil.copytree(finished, tmp_path / "out", symlinks=True)
    tiny = [sys.executable, "-m", "tests.support.tiny_teacher", "tests.study", "gain"]
    command = [*tiny, *words, "--out", str(tmp_path / "out")]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    results = read_results(tmp_path / "out")
    assert len(results) == 7 and (tmp_path / "out/teachers/few-10/teacher.pth").is_file()
    ends = [line for out in said for line in out.splitlines() if " on the half " in line]
    trained = [line.partition(":")[0] for line in ends]
    assert len(trained) == len(set(trained)) == 5
    again = [*command, "--jobs", "2"]
    assert subprocess.run(again, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budgets": [4]}, "budgets is 3, expected one of 4"),
        ({"baseline": "none"}, "baseline is 'none', expected one of labels, kl, pseudo, recipe"),
        ({"colour": 1}, "colour is there, expected these names: name, lists"),
        ({"every": [0]}, "expected one of 0"),
        ({"arms": {**STUDY["arms"], "kl": {"loss.betta": 1}}}, "loss.betta is unknown, expected"),
        ({"arms": {**STUDY["arms"], "kl": {"pictures": "all"}}}, "pictures is 'all', expected"),
        ({"grids": {"report": [], "test": []}}, "half of val is 'test', expected one of choose"),
    ],
)
def test_a_slip_in_the_file_is_one_line(change, message, study_file, words, tmp_path, capsys):
    given = {**yaml.safe_load(study_file.read_text()), **change}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    wrong = ["--config", str(tmp_path / "wrong.yaml"), *words[2:]]
    assert gain(wrong, tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("study gain: ") and message in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "labels,kll"], "expected some of labels,kl,pseudo,recipe"),
        (["--teacher", "al=x"], "teacher is 'al', expected one of all, few, half"),
        (["--teacher", "few=gone.pth"], "--teacher is 'gone.pth', expected a file of weights"),
        (["--half", "test"], "--half is 'test', expected choose or report"),
    ],
)
def test_a_slip_of_the_pen_is_one_line(options, message, words, tmp_path, capsys):
    assert gain(words, tmp_path / "out", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not (tmp_path / "out").exists()


def test_a_list_has_the_labels_and_each_student_its_own_arms(
    words, study_file, voc_root, tmp_path, capsys
):
    given = yaml.safe_load(study_file.read_text())
    given |= {
        "every": ["some", 1],
        "students": {"narrow": {"student.aspp_channels": 8}, "wide": {}},
    }
    block = {"every": ["some"], "arms": ["labels", "wide-recipe"], "teachers": ["few", "all"]}
    given["grids"] = {"report": [{**block, "budgets": [3], "seeds": 1}]}
    (tmp_path / "lists.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    shutil.copytree(voc_root, tmp_path / "data")
    folder = tmp_path / "data" / VOC_DIR / "ImageSets/Segmentation"
    ids = (folder / "train.txt").read_text().split()
    (folder / "some.txt").write_text("\n".join(ids[1:4]))
    words = ["--config", str(tmp_path / "lists.yaml"), "--root", str(tmp_path / "data"), *words[4:]]
    assert gain(words, tmp_path / "out", "--only", "wide-recipe") == 0
    lines = read_results(tmp_path / "out")
    assert [(x["arm"], x["labels"], x["teacher"]) for x in lines] == [
        ("wide-recipe", 3, "few"),
        ("wide-recipe", 3, "all"),
    ]
    assert "student.aspp_channels" not in lines[0]["settings"]
    base = tmp_path / "out/report/data/3" / VOC_DIR / "ImageSets/Segmentation"
    assert (base / "labelled.txt").read_text().split() == ids[1:4]
    assert (base / "others.txt").read_text().split() == [ids[0], *ids[4:]]
    assert gain(words, tmp_path / "out", "--dry-run") == 0
    (run, end) = capsys.readouterr().out.splitlines()[-2:]
    assert run.endswith("labels-3labels-3steps-seed0") and end.startswith("1 runs are left of 3")
    study = read_study(tmp_path / "lists.yaml")
    assert study.find_baseline("wide-recipe") == "wide-labels"
    assert study.find_baseline("recipe") == "labels"
    assert study.arms["recipe"]["student.aspp_channels"] == 8


def test_an_arm_may_have_some_of_the_unlabelled_images(words, study_file, voc_root, tmp_path):
    given = yaml.safe_load(study_file.read_text())
    given["arms"] |= {f"recipe-{n}": {**given["arms"]["recipe"], "pictures": n} for n in (0, 3)}
    block = {"every": [2], "arms": ["labels", "recipe-0", "recipe-3"], "teachers": ["all"]}
    given["grids"] = {"report": [{**block, "budgets": [6], "seeds": 1}]}
    (tmp_path / "some.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    words = ["--config", str(tmp_path / "some.yaml"), *words[2:]]
    assert gain(words, tmp_path / "out") == 0
    lines = read_results(tmp_path / "out")
    assert [
        (x["arm"], x["labels"], x["budget"], x["steps"], len(x["settings"])) for x in lines
    ] == [
        ("labels", 5, 6, 6, 2),
        ("recipe-0", 5, 6, 6, 2),  # scores of the labelled images alone
        ("recipe-3", 5, 6, 6, 4),
    ]
    ids = (voc_root / VOC_DIR / "ImageSets/Segmentation/train.txt").read_text().split()[1::2]
    for name, kept in (
        ("5", ids),
        ("5-0pictures", []),
        ("5-3pictures", [ids[k] for k in (0, 1, 3)]),
    ):
        base = tmp_path / "out/report/data" / name / VOC_DIR / "ImageSets/Segmentation"
        assert (base / "others.txt").read_text().split() == kept
    study = read_study(tmp_path / "some.yaml")
    assert study.find_same("recipe", unlabelled=True) == ["recipe"]


def test_labels_alone_read_the_cache_of_their_own_line_of_the_grid(study_file, voc_root):
    """Else a teacher would be fitted for images that another one's cache has."""
    study = read_study(study_file)
    block = Block(every=[1], arms=["labels"], budgets=[3], teachers=["few"], seeds=1)
    (job,) = plan_jobs(
        replace(study, grids={"report": [block]}), "report", read_lists(study, voc_root)
    )
    place = Place(Path("out"), "report", {"all": "all.pth", "few": "{labels}.pth"})
    assert job.teacher is None and place.cache_path(job).name == "10-few"


def test_steps_that_are_no_whole_number_of_epochs_are_refused(words, study_file, tmp_path, capsys):
    given = yaml.safe_load(study_file.read_text())
    given["budgets"] = [3, 4]
    given["grids"]["report"][1]["budgets"] = [4]
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    wrong = ["--config", str(tmp_path / "wrong.yaml"), *words[2:]]
    assert gain(wrong, tmp_path / "out", "--dry-run") == 2
    assert (
        "budget is 4, expected a multiple of 3, the steps of an epoch, or 2 % beside it"
        in capsys.readouterr().err
    )
