"""`python -m train_student report RUN`: the page again, or one line if that cannot be."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from kdcache.config.parser import merge
from kdcache.progress import Output
from kdcache.report.run_page import find_baseline_folder, rewrite_report
from kdcache.report.training import report_result
from kdcache.training.checkpoint import BEST
from kdcache.training.distill import distill
from kdcache.training.processes import Alone
from kdcache.training.run_folder import METRICS, RESULT, SETTINGS, read_result, write_result
from tests.support import quick
from tests.support.html_pages import Page, parse
from train_student.cli import main


@dataclass
class Run:
    """A finished run of a quick cache; a test may spoil both."""

    folder: Path
    cache: Path

    def report(self, *argv: str) -> int:
        """Exit code."""
        return main(["report", str(self.folder), *argv])

    def page(self) -> Page:
        return parse(self.folder / "report.html")

    def change_result(self, **fields: object) -> None:
        """Write result.json with other values; None takes a name away."""
        result = {**json.loads((self.folder / RESULT).read_text()), **fields}
        kept = {k: v for k, v in result.items() if v is not None and k != "sha256"}
        write_result(self.folder, kept)


@pytest.fixture(scope="module")
def trained(quick_data, tmp_path_factory) -> Path:
    """A folder with a cache, a run and its baseline. Read only."""
    root = tmp_path_factory.mktemp("trained")
    given = merge(
        quick.quick_given(quick_data, root / "cache"), {"run": {"dir": str(root / "runs" / "kd")}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
        quick.build_quick(quick_data, root / "cache")
    report_result(distill(given, root=root / "cache"), Alone(), output=Output())
    return root


@pytest.fixture
def run(trained, tmp_path) -> Run:
    """A copy, with a report that says it is old."""
    shutil.copytree(trained, tmp_path / "copy")
    run = Run(tmp_path / "copy" / "runs" / "kd", tmp_path / "copy" / "cache")
    settings = yaml.safe_load((run.folder / SETTINGS).read_text())
    (run.folder / SETTINGS).write_text(
        yaml.safe_dump(merge(settings, {"cache": {"path": str(run.cache)}}))
    )
    (run.folder / "report.html").write_text("old")
    return run


def fails(capsys, run: Run, *argv: str) -> tuple[int, str]:
    """Exit code and the one line; the report is as it was."""
    code = run.report(*argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train_student report: ")
    assert not run.folder.is_dir() or (run.folder / "report.html").read_text() == "old"
    return code, line


def test_report_of_a_finished_run_is_the_one_of_its_end(run, trained, capsys):
    assert run.report() == 0
    assert capsys.readouterr().out.strip() == str(run.folder / "report.html")
    then = (trained / "runs" / "kd" / "report.html").read_text()
    assert run.page().text == parse(trained / "runs" / "kd" / "report.html").text.replace(
        str(trained / "cache"), str(run.cache)
    )
    assert len(then) > 10_000


def test_panels_are_as_many_as_asked(run):
    assert run.report("--panels", "1") == 0
    assert len(run.page().pictures) == 6 and "1 of 2: those on which" in run.page().text
    assert "They differ most" in run.page().text and "They differ least" not in run.page().text
    assert run.report("--panels", "50") == 0
    assert len(run.page().pictures) == 2 * 6


def test_page_says_who_trained_and_what_was_cached(run):
    assert run.report() == 0
    text, result = run.page().text, read_result(run.folder)
    assert (
        set(result["versions"]) >= {"python", "kdcache", "torch", "torchvision"}
        and result["device"] == "cpu"
    )
    assert "Made with baseline student cache device cpu cpu cpu CPU threads 1 1 1" in text
    torch, zarr = result["versions"]["torch"], "zarr not recorded not recorded"
    assert f"torch {torch} {torch} {torch}" in text and zarr in text
    assert result["baseline"].startswith("../baseline-")
    assert find_baseline_folder(run.folder, result).name in [
        path.name for path in run.folder.parent.iterdir()
    ]


def test_older_runs_have_a_report_without_what_they_do_not_know(run):
    run.change_result(baseline=None, versions=None, device=None, num_threads=None)
    assert run.report() == 0
    page = run.page()
    assert "The baseline's folder is gone or was not recorded: only its mIoU is known." in page.text
    assert "Made with student cache device not recorded cpu" in page.text
    assert (
        f"{read_result(run.folder)['baseline_miou']:.4f}" in page.text
        and len(page.pictures) == 2 * 5
    )


def test_a_baseline_that_is_gone_leaves_its_miou(run):
    shutil.rmtree(find_baseline_folder(run.folder, read_result(run.folder)))
    assert run.report() == 0
    assert "only its mIoU is known" in run.page().text


def test_a_baseline_without_its_checkpoint_leaves_its_numbers(run):
    (find_baseline_folder(run.folder, read_result(run.folder)) / BEST).unlink()
    assert run.report() == 0
    page = run.page()
    assert "only its mIoU is known" not in page.text and "baseline of" not in " ".join(
        page.pictures
    )
    assert page.text.count("label → called") == 1


def test_a_folder_whose_name_is_no_text_has_a_report(run):
    run.folder = run.folder.rename(run.folder.with_name(os.fsdecode(b"run \xff")))
    assert run.report() == 0
    assert "run \\udcff" in run.page().text


def test_a_moved_cache_is_named_on_the_command_line(run, capsys):
    moved = run.cache.rename(run.cache.with_name("moved"))
    code, line = fails(capsys, run)
    assert code == 1 and f"{run.cache}: manifest.json is missing, expected a kdcache cache" in line
    assert run.report("--cache.path", str(moved)) == 0
    assert str(moved) in run.page().text


def test_another_cache_is_refused(run, quick_data, quick_teacher, capsys):
    other = run.cache.with_name("other")
    settings = merge(quick.quick_given(quick_data, other), {"augment": {"seed": 5}})
    (run.folder / SETTINGS).write_text(yaml.safe_dump(settings))
    from kdcache.config.parser import make_config
    from kdcache.precompute.build import build_cache

    build_cache(make_config(settings))
    capsys.readouterr()  # the warning of a teacher with random weights
    code, line = fails(capsys, run)
    assert (
        code == 1
        and f"{other}: cache identity is" in line
        and "give the cache of this run by --cache.path" in line
    )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda run: shutil.rmtree(run.folder),
            ["run folder is missing, expected the folder of a finished run"],
        ),
        (
            lambda run: (run.folder / SETTINGS).unlink(),
            ["run folder is of no run", "give run.dir of a training"],
        ),
        (
            lambda run: (run.folder / SETTINGS).write_text("[1"),
            ["config.yaml: ", "expected plain YAML"],
        ),
        (
            lambda run: (run.folder / SETTINGS).write_text("cache: {path: nowhere}"),
            ["nowhere: manifest.json is missing"],
        ),
        (
            lambda run: (run.folder / SETTINGS).write_text("train: {epochs: [x]}"),
            ["train.epochs is", "expected a whole number"],
        ),
        (
            lambda run: (run.folder / RESULT).unlink(),
            ["run folder is unfinished", "finish it with --run.resume"],
        ),
        (lambda run: (run.folder / RESULT).write_text("{}"), ["result.json: result is unreadable"]),
        (
            lambda run: run.change_result(best_epoch=None),
            ["result.json: result is unreadable (it has no best_epoch)"],
        ),
        (
            lambda run: run.change_result(per_class_iou={"sky": 0.5}),
            ["list of classes is another one, expected that of config.yaml"],
        ),
        (lambda run: (run.folder / METRICS).unlink(), ["metrics.jsonl: history is unreadable"]),
        (
            lambda run: (run.folder / METRICS).write_text(""),
            ["metrics.jsonl: history is unreadable"],
        ),
        (
            lambda run: (run.folder / METRICS).write_text('{"miou": 1}\n'),
            ["metrics.jsonl: history is unreadable"],
        ),
        (
            lambda run: (run.folder / METRICS).write_text("[]\n"),
            ["metrics.jsonl: history is unreadable"],
        ),
        (lambda run: (run.folder / BEST).write_bytes(b"no"), [f"{BEST}: checkpoint is unreadable"]),
        (lambda run: (run.folder / BEST).unlink(), [f"{BEST}: checkpoint is unreadable"]),
    ],
)
def test_what_is_no_finished_run_is_one_line(run, spoil, words, capsys):
    spoil(run)
    code, line = fails(capsys, run)
    assert code in (1, 2) and all(word in line for word in words), line


@pytest.mark.parametrize("found", ["0", "51", "six", "-1", "1.5"])
def test_numbers_of_panels_that_cannot_be_are_refused(run, found, capsys):
    code, line = fails(capsys, run, f"--panels={found}")
    assert code == 2 and f"--panels is {found!r}, expected a whole number from 1 to 50" in line


def test_a_device_that_is_not_there_is_refused_and_another_can_be_named(run, capsys):
    code, line = fails(capsys, run, "--train.device", "cuda:77")
    assert code == 2 and "train.device is 'cuda:77', expected auto or one of" in line
    assert rewrite_report(run.folder, {"train": {"device": "cpu"}}, num_panels=1).is_file()


def test_help_names_the_command(capsys):
    for argv in (["--help"], ["report", "--help"]):
        with pytest.raises(SystemExit):
            main(argv)
    told = " ".join(capsys.readouterr().out.split())
    assert "report write the report of a finished run again" in told and "--cache.path PATH" in told
