"""An error in one of several processes ends all, in one line, and so does a difference between
them.
"""

from __future__ import annotations

import pytest
import torch

from kdcache.cache.manifest import read_manifest
from kdcache.command import run_command
from kdcache.config.parser import make_config, merge
from kdcache.errors import SettingsError, ToldElsewhere
from kdcache.precompute.build import build_cache
from kdcache.training.distill import _warn_of_few_rows, baseline_config, hash_settings
from kdcache.training.processes import _check_equal
from kdcache.training.samples import open_data
from tests.support import quick, together
from tests.support.helpers import check_one_line

CPU = torch.device("cpu")


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_all_and_is_told_once(rank):
    answers = together.run_together(2, together.refuse_in, rank)
    assert answers[rank] == ("SettingsError", f"not in {rank}", 2)
    assert answers[1 - rank][::2] == ("ToldElsewhere", 2)


def test_what_another_process_says_is_not_said_again_and_is_waited_for(capsys, monkeypatch):
    def work():
        raise ToldElsewhere(2)

    waits: list[float] = []
    monkeypatch.setattr("kdcache.command.time.sleep", waits.append)
    assert run_command("train_student", work) == 2
    assert capsys.readouterr() == ("", "") and len(waits) == 1 and waits[0] >= 1


def test_a_non_finite_loss_in_one_process_ends_all(given, tmp_path):
    healthy, failed = together.run_together(2, together.fail, given, "not finite")
    assert failed[0] == "TrainingError" and "epoch 1 step 1: loss is nan" in failed[1]
    assert failed[1].count("sample_train_") == 3  # of five
    assert (
        healthy[0] == "TrainingError"
        and "process 0 of 2: another process of this run has ended" in healthy[1]
    )
    assert not list((tmp_path / "runs" / "kd").glob("*.pth"))


def test_a_killed_process_ends_the_others_in_one_line(given):
    healthy, killed = together.run_together(2, together.fail, given, "killed")
    assert killed == -9
    assert (
        healthy[0] == "TrainingError"
        and "another process of this run has ended; look for its line" in healthy[1]
    )


def test_two_processes_on_one_gpu_are_refused():
    one, two = together.run_together(2, together.share_one_gpu)
    assert one[0] == "SettingsError" and two[0] == "ToldElsewhere"
    assert (
        "train.device is 'cuda:0', expected a GPU for each of 2 processes, they see 1; start 1 with"
        in one[1]
    )


def test_the_gpu_that_torch_takes_by_default_needs_no_number():
    assert together.run_together(2, together.take_default_gpus) == [None, None]


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (
            {"loss": {"beta": 0.25}},
            "loss.beta of process 1 is 0.25, expected 0.5, as process 0 has it",
        ),
        (
            {"run": {"baseline": True}},
            "run.baseline of process 1 is True, expected False, as process 0 has it",
        ),
        (
            {"train": {"precision": "bfloat16"}},
            "train.precision of process 1 is 'bfloat16', expected 'float32'",
        ),
    ],
)
def test_processes_with_other_settings_are_refused_in_one_line(given, own, words):
    one, two = together.run_together(2, together.train_otherwise, given, own)
    assert one[0] == "SettingsError" and two[0] == "ToldElsewhere"
    assert f"settings: {words}" in one[1] and one[1].endswith(
        "the same settings, cache and arithmetic"
    )


def test_processes_with_another_cache_are_refused_in_one_line(given, tmp_path):
    other = merge(given, {"cache": {"path": str(tmp_path / "other")}, "augment": {"seed": 1}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
        build_cache(make_config(other))
    own = {name: other[name] for name in ("cache", "augment")}
    one, _ = together.run_together(2, together.train_otherwise, given, own)
    assert one[0] == "SettingsError" and "identity of the cache of process 1 is " in one[1]


def test_processes_whose_unlabelled_images_differ_are_refused_in_one_line():
    """One cache has none, and so lacks a fact that the other has."""
    first, more = {"a": 1}, {"a": 1, "number of unlabelled samples": 8}
    for found in ([first, more], [more, first]):
        with pytest.raises(SettingsError) as error:
            _check_equal(found)
        check_one_line(error, "number of unlabelled samples of process 1 is ")


def test_a_compiler_that_fails_in_one_process_is_left_out_in_all(given):
    answers = together.run_together(2, together.compile_where_it_fails_in_one, given)
    assert answers == [(False, ["compile: off, not possible in every process"]), (False, [])]


def test_few_rows_a_process_on_a_cpu_are_warned_of(caplog):
    _warn_of_few_rows(16, 4, CPU)
    _warn_of_few_rows(8, 4, torch.device("cuda"))
    assert not caplog.records
    _warn_of_few_rows(8, 4, CPU)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "have 2 rows of a batch" in line and line.endswith(
        "start fewer processes or set train.batch_size 16"
    )


def test_a_baseline_on_a_cpu_is_one_of_as_many_processes(given):
    config = make_config(given)
    data = open_data(config.cache.path, read_manifest(config.cache.path), num_views=2)
    hashes = [
        hash_settings(baseline_config(config), data.manifest, count=count) for count in (1, 2, 4)
    ]
    assert len(set(hashes)) == 3
