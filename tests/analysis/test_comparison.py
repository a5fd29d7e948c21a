"""Runs side by side: what is a row, what is its baseline, what is refused and what is left out."""

import json
import shutil

import pytest

from kdcache.analysis.comparison import compare_runs
from kdcache.analysis.runs import best_miou, class_iou, last_miou
from kdcache.config.parser import merge
from kdcache.errors import SettingsError
from kdcache.training.distill import distill
from tests.support.finished import OLDER, write_baseline, write_run, write_three_seeds
from train_student.cli import main


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def refuse(capsys, *argv, unsealed: bool = False) -> str:
    """The one line of an error of exit code 2, behind that of runs of before, if there are some."""
    assert main(["compare", *map(str, argv)]) == 2
    out, err = capsys.readouterr()
    *warnings, line = err.splitlines()
    assert ("unsealed (before 0.2)" in (warnings or [""]).pop(0)) == unsealed
    assert not out and all(warning.startswith("warning: left out: ") for warning in warnings)
    assert line.startswith("train_student compare: ")
    return line


def names(comparison) -> list[str]:
    return [row.name for row in comparison.rows]


def test_seeds_are_one_row_and_differences_are_paired(runs):
    baseline, student = compare_runs([write_three_seeds(runs)]).rows
    assert (baseline.name, student.name) == ("baseline", "loss.beta 0.5, loss.gamma 0.3")
    assert (
        sorted(student.runs) == [0, 1, 2]
        and student.baseline is baseline
        and baseline.baseline is None
    )
    assert student.estimate(best_miou).mean == pytest.approx((0.51 + 0.55 + 0.53) / 3)
    assert student.estimate(best_miou).deviation == pytest.approx(0.02)
    assert student.differences(best_miou) == pytest.approx({0: 1.0, 1: 3.0, 2: 2.0})
    assert student.difference(best_miou).interval == pytest.approx(
        (2 - 2.4841, 2 + 2.4841), abs=1e-3
    )
    assert student.difference(last_miou).mean == pytest.approx(1.0)
    assert student.epoch_s == 10.0


def test_classes_are_paired_by_themselves_and_absent_ones_do_not_count(runs):
    for seed, (base, own) in enumerate([(0.2, 0.3), (0.4, 0.5), (0.5, None)]):
        write_baseline(
            runs / f"b{seed}", 0.5, seed=seed, ious={"sky": 0.6, "road": base, "car": None}
        )
        write_run(runs / f"s{seed}", 0.5, seed=seed, ious={"sky": 0.6, "road": own, "car": None})
    row = compare_runs([runs]).rows[1]
    assert row.difference(class_iou(0)).interval == (0.0, 0.0)
    assert row.difference(class_iou(1)).count == 2 and row.difference(
        class_iou(1)
    ).mean == pytest.approx(10.0)
    assert row.paired_means(class_iou(1)) == pytest.approx((0.4, 0.3))
    assert row.difference(class_iou(2)) is None and row.paired_means(class_iou(2)) is None


def test_an_iou_of_0_counts(runs):
    write_baseline(runs / "b", 0.5, ious={"sky": 0.5, "road": 0.0})
    write_run(runs / "s", 0.5, ious={"sky": 0.0, "road": 0.5})
    row = compare_runs([runs]).rows[1]
    assert [row.difference(class_iou(k)).mean for k in (0, 1)] == [-50, 50]


def test_only_seeds_that_both_have_are_paired(runs):
    write_three_seeds(runs)
    shutil.rmtree(runs / "b1")
    row = compare_runs([runs]).rows[1]
    assert len(row.runs) == 3 and row.differences(best_miou) == pytest.approx({0: 1.0, 2: 2.0})


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"train.epochs": 60}},
        {"settings": {"train.precision": "bfloat16"}},
        {"settings": {"train.crop": [32, 32]}},
        {"settings": {"student.arch": "mine.py:Net"}},
        {"processes": [2]},
        {"device_type": "cuda"},
        {"pictures_identity": "d" * 64},
    ],
    ids=str,
)
def test_a_baseline_with_other_settings_is_none(runs, changes, capsys):
    write_baseline(runs / "b", 0.5)
    write_run(runs / "s", 0.6, **changes)
    row = compare_runs([runs]).rows[1]
    assert row.baseline is None and row.difference(best_miou) is None
    assert main(["compare", str(runs)]) == 0
    out = capsys.readouterr().out
    assert "no baseline with the" in out and "Rows differ in more than the loss: " in out
    (name, value), *_ = changes.get("settings", changes).items()
    named = {
        "device_type": "device cuda",
        "processes": "processes 2",
        "pictures_identity": "images and labels",
    }
    assert named.get(name, name) in row.name and (
        name != "train.epochs" or "train.epochs (30, 60)" in out
    )


def test_what_had_no_part_in_the_loss_does_not_matter(runs):
    """Of a baseline: temperature, levels; of a student without KL its temperature; without features
    its levels. An alpha of 0 has a baseline of alpha 1."""
    write_baseline(runs / "b", 0.5, settings={"loss.temperature": 2.0})
    write_run(runs / "features", 0.6, settings={"loss.beta": 0, "loss.temperature": 1.0})
    write_run(runs / "again", 0.6, settings={"loss.beta": 0, "loss.temperature": 3.0}, seed=1)
    write_run(
        runs / "alone",
        0.6,
        settings={"loss.alpha": 0.0, "loss.gamma": 0.0, "cache.levels": ["high"]},
    )
    comparison = compare_runs([runs])
    assert [len(row.runs) for row in comparison.rows] == [1, 1, 2] and len(comparison.compared) == 2
    assert names(comparison)[1:] == [
        "loss.alpha 0, loss.beta 0.5, loss.gamma 0",
        "loss.alpha 1, loss.beta 0, loss.gamma 0.3",
    ]


def test_a_baseline_serves_all_caches_of_its_images_and_gpus_of_any_number(runs):
    write_baseline(runs / "b", 0.5, device_type="cuda", processes=[1])
    for place, cache in enumerate(("c" * 64, "e" * 64)):
        write_run(
            runs / f"s{place}", 0.6, cache_identity=cache, device_type="cuda", processes=[4, 8]
        )
    comparison = compare_runs([runs])
    assert len(comparison.compared) == 2
    assert names(comparison)[1] == f"loss.beta 0.5, loss.gamma 0.3, cache {'c' * 12} (half)"


def test_a_baseline_is_one_of_as_many_unlabelled_images(runs):
    """They decide the number of steps."""
    share = {"settings": {"train.unlabelled_share": 0.5}}
    for num, base, own in ((8, 0.5, 0.6), (80, 0.7, 0.75)):
        here = {**share, "unlabelled_samples": num}
        write_baseline(runs / f"b{num}", base, cache_identity=str(num), **here)
        write_run(runs / f"s{num}", own, cache_identity=f"{num}" * 32, **here)
    comparison = compare_runs([runs])
    assert not comparison.left_out
    differences = [row.differences(best_miou)[0] for row in comparison.compared]
    assert sorted(differences) == pytest.approx([5.0, 10.0])
    assert names(comparison)[:2] == [
        "baseline, unlabelled images 8",
        "baseline, unlabelled images 80",
    ]


def test_shares_have_one_baseline(runs):
    """A run with labels only draws the same batches whatever its share is."""
    shares, others = (0.25, 0.75), {"unlabelled_samples": 8}
    write_baseline(runs / "b", 0.5, settings={"train.unlabelled_share": 0.25}, **others)
    for share, miou in zip(shares, (0.6, 0.7), strict=True):
        settings = {"train.unlabelled_share": share}
        write_run(runs / f"s{share}", miou, settings=settings, **others)
    write_run(runs / "none", 0.9, settings={"train.unlabelled_share": None})
    comparison = compare_runs([runs])
    paired = [row.differences(best_miou)[0] for row in comparison.compared if row.pairs]
    assert sorted(paired) == pytest.approx([10.0, 20.0])


def test_rows_are_named_by_what_differs_in_the_order_of_numbers(runs):
    for beta in (10.0, 2.0, 0.5):
        write_run(runs / f"{beta}", 0.5, settings={"loss.beta": beta})
    assert names(compare_runs([runs])) == ["loss.beta 0.5", "loss.beta 2", "loss.beta 10"]
    assert names(compare_runs([runs / "2.0"])) == ["loss.beta 2, loss.gamma 0.3"]


def test_folders_names_do_not_matter_and_each_run_counts_once(runs):
    write_baseline(runs / "grid" / "loss.beta=7,seed=3", 0.5)
    student = write_run(runs / "grid" / "baseline-0123", 0.6)
    (runs / "notes").mkdir()
    comparison = compare_runs([runs, runs / "grid", student, runs / "notes"])
    assert (
        len(comparison.runs) == 2
        and len(comparison.left_out) == 1
        and len(comparison.compared) == 1
    )


def test_a_seed_twice_counts_once_and_is_named(runs):
    write_run(runs / "a", 0.5)
    write_run(runs / "b", 0.6)
    comparison = compare_runs([runs])
    assert comparison.rows[0].estimate(best_miou).mean == 0.5
    (line,) = comparison.left_out
    assert (
        line.startswith(f"{runs / 'b'}: settings and seed are those of {runs / 'a'}")
        and "0.5000, this one 0.6000" in line
    )


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ('{"miou": 0.', "result is unreadable"),
        ("[]", "result is unreadable"),
        ("\xff", "result is unreadable"),
        ({"miou": None}, "result is unreadable"),
        ({"miou": float("nan")}, "NaN is no number"),
        ({"miou": 51.2}, "miou is 51.2, expected"),
        ({"per_class_iou": [0.5]}, "result is unreadable"),
        ({"per_class_iou": {"sky": "x"}}, "result is unreadable"),
        ({"last_miou": None}, "result is unreadable"),
        ({"hyperparameters": {}}, "is missing"),
        ({"processes": 3}, "unreadable"),
        ({"hyperparameters": {"loss.beta": 0.0}}, "is missing"),
        ({"validation_identity": 5}, "unreadable"),
        ({"pictures_identity": 5}, "pictures_identity is 5, expected"),
        ({"best_epoch": float("inf")}, "unreadable"),
        (None, "run is not finished (it has no result.json)"),
    ],
    ids=range(16),
)
def test_what_is_damaged_or_unfinished_is_one_line_and_the_rest_is_compared(
    runs, contents, reason, capsys
):
    write_three_seeds(runs)
    file = write_run(runs / "z", 0.5, seed=9) / "result.json"
    if contents is None:
        file.unlink()
    elif isinstance(contents, str):
        file.write_bytes(contents.encode("latin-1"))
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | contents))
    assert main(["compare", str(runs)]) == 0
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith(f"warning: left out: {runs / 'z'}") and reason in line
    assert "+2.00 [-0.48, +4.48]" in out


def test_foreign_folders_and_files_are_named(runs, capsys):
    write_three_seeds(runs)
    (runs / "notes" / "old").mkdir(parents=True)
    (runs / "table.csv").write_text("")
    comparison = compare_runs([runs, runs / "table.csv"])
    assert comparison.left_out == [
        f"{runs / n}: no run folder (it has no config.yaml)" for n in ("notes", "table.csv")
    ]
    assert len(comparison.runs) == 6


def test_times_and_encodings_that_are_unreadable_are_unknown(runs):
    folder = write_run(runs / "a", 0.5, older=True)
    (folder / "metrics.jsonl").write_text("{")
    (folder / "config.yaml").write_text("cache: [")
    (row,) = compare_runs([folder]).rows
    assert row.epoch_s is None and row.encoding is None


def test_no_finished_run_is_refused(runs, capsys):
    (write_run(runs / "a", 0.5) / "result.json").unlink()
    assert f"{runs}: finished runs is none, expected one or more; give folders of runs" in refuse(
        capsys, runs
    )
    assert "path is missing" in refuse(capsys, runs / "nothing")
    assert "PATH" in refuse(capsys)


def test_other_validation_data_is_refused(runs, capsys):
    write_three_seeds(runs)
    write_run(runs / "z", 0.9, validation_identity="f" * 64)
    line = refuse(capsys, runs)
    words = "validation data is 'ffffffffffff', expected 'aaaaaaaaaaaa'; compare runs of the same"
    assert f"{runs / 'z'}: {words}" in line


def test_runs_of_an_older_version_are_compared_with_their_like_alone(runs, capsys):
    write_three_seeds(runs / "new")
    write_baseline(runs / "old" / "b", 0.3, older=True)
    write_run(runs / "old" / "s", 0.4, older=True)
    comparison = compare_runs([runs])
    assert len(comparison.runs) == 6 and len(comparison.left_out) == 2
    assert all(
        "validation data is unknown (an older kdcache trained it)" in line
        for line in comparison.left_out
    )
    assert main(["compare", str(runs / "old")]) == 0
    out, err = capsys.readouterr()
    assert err.count("unsealed (before 0.2)") == 1
    assert "+10.00" in out and "Validation data: unknown" in out and "taken on trust" in out
    write_run(runs / "old" / "more", 0.4, seed=1, older=True, ious={"sky": 0.4})
    line = refuse(capsys, runs / "old", unsealed=True)
    assert "number of classes is 1, expected 2" in line


def test_of_older_runs_on_several_images_none_has_a_baseline(runs):
    for place, pictures in enumerate(("b" * 64, "e" * 64)):
        write_baseline(runs / f"b{place}", 0.5, older=True, cache_identity=pictures)
    write_run(runs / "s", 0.6, older=True)
    assert compare_runs([runs]).compared == []


def test_real_runs_find_their_baselines(cache, given, tmp_path):
    """Two students of two seeds: the second seed's baseline is trained, both are found beside the
    runs.
    """
    for seed in (0, 1):
        own = {
            "train": {"epochs": 1, "seed": seed},
            "run": {"dir": str(tmp_path / "runs" / f"kd{seed}")},
        }
        outcome = distill(merge(given, own), root=cache.cache.path)
    assert not set(OLDER) - set(outcome.student)
    comparison = compare_runs([tmp_path / "runs"])
    baseline, row = comparison.rows
    assert (
        comparison.left_out == []
        and row.baseline is baseline
        and sorted(row.runs) == sorted(baseline.runs) == [0, 1]
    )
    assert row.differences(best_miou)[1] == pytest.approx(outcome.student["improvement_points"])
    assert list(outcome.student["per_class_iou"]) == comparison.names and row.epoch_s > 0


def test_a_run_alone_finds_its_own_baseline(runs, capsys):
    name = "baseline-0123456789ab"
    write_baseline(runs / name, 0.5)
    write_run(runs / "kd", 0.6, baseline=f"../{name}")
    write_run(runs / "other", 0.7, seed=1)
    for given in ([runs / "kd"], [runs / "kd", runs / name], [runs / "kd" / ".." / "kd"]):
        comparison = compare_runs(given)
        assert [row.pairs[0][1].miou for row in comparison.compared] == [0.5]
        assert len(comparison.runs) == 2 and not comparison.left_out
    capsys.readouterr()
    assert main(["compare", str(runs / "kd")]) == 0
    assert "+10.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    "named", ["../baseline-000000000000", "../kd", "/etc", "../../x/baseline-0123456789ab", ""]
)
def test_a_baseline_that_is_gone_or_elsewhere_is_none(runs, tmp_path, named):
    write_baseline(tmp_path / "x" / "baseline-0123456789ab", 0.5)
    write_run(runs / "kd", 0.6, baseline=named)
    assert not compare_runs([runs / "kd"]).compared


def test_the_library_raises_what_the_command_says(runs):
    with pytest.raises(SettingsError, match="path is missing"):
        compare_runs([runs])
