"""SIGTERM and SIGHUP end a command as Ctrl-C does: one line, what is begun is finished if it can be
soon, and the same command goes on to the same bytes.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
import yaml

import cache_teacher.cli
import train_student.cli
from kdcache.command import run_command
from kdcache.config.parser import make_config
from kdcache.errors import KdcacheError, ToldElsewhere
from kdcache.machine import signals
from kdcache.precompute.build import build_cache
from kdcache.training import loop
from tests.support import quick

SIGNALS = {signal.SIGTERM: 143, signal.SIGHUP: 129}


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), SIGNALS.items())
def test_a_signal_ends_a_command_in_one_line(capsys, number: int, code: int):
    before = [signal.getsignal(each) for each in SIGNALS]

    def work() -> None:
        send(number)
        pytest.fail("the signal was ignored")

    assert run_command("a program", work) == code
    (line,) = capsys.readouterr().err.splitlines()
    name = signal.Signals(number).name
    assert line == f"a program: interrupted by {name}; what is finished is kept"
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_what_is_ignored_stays_ignored(capsys):
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_command("a program", lambda: send(signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not capsys.readouterr().err


def test_a_second_signal_does_not_interrupt_the_tidying(capsys):
    """Launchers send one to the process and another to its group."""
    tidied = []

    def work() -> None:
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGHUP)
            send(signal.SIGTERM)
            tidied.append(True)

    assert run_command("a program", work) == 143
    assert tidied and len(capsys.readouterr().err.splitlines()) == 1


def test_a_command_of_another_thread_leaves_signals_alone():
    codes, before = [], signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: codes.append(run_command("x", lambda: 7)))
    thread.start()
    thread.join()
    assert codes == [7] and signal.getsignal(signal.SIGTERM) == before


def test_a_signal_while_another_end_is_told_is_one_line(capsys, monkeypatch):
    def work() -> None:
        raise KdcacheError("a reason")

    monkeypatch.setattr("kdcache.command._explain", lambda error: send(signal.SIGTERM))
    assert run_command("a program", work) == 143
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_worker_whose_end_is_told_elsewhere_says_nothing_when_torchrun_ends_it(
    capsys, monkeypatch
):
    def work() -> None:
        raise ToldElsewhere(2)

    monkeypatch.setattr("kdcache.command.time.sleep", lambda time_s: send(signal.SIGTERM))
    assert run_command("a program", work) == 2
    assert not capsys.readouterr().err


def test_an_error_that_follows_a_signal_is_not_told_as_a_slip(capsys):
    def work() -> None:
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("gloo: connection closed by peer") from None

    assert run_command("a program", work) == 143
    assert "interrupted by SIGTERM" in capsys.readouterr().err


@pytest.fixture
def world(quick_data, tmp_path, monkeypatch, quick_teacher) -> Path:
    """Settings of a cache and a run, in the current folder."""
    monkeypatch.chdir(tmp_path)
    given = quick.quick_given(quick_data, Path("cache"))
    given["run"] = {"dir": "run/kd", "track": "none", "baseline": False}
    given["train"] |= {"epochs": 3}
    Path("given.yaml").write_text(yaml.safe_dump(given))
    return tmp_path


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("patience_s", [10.0, -1.0])
def test_the_group_in_flight_is_finished_if_it_can_be_soon(
    world, quick_data, monkeypatch, capsys, number, patience_s
):
    given = quick.quick_given(quick_data, Path("whole"))
    build_cache(make_config(given))
    whole = quick.snapshot(Path("whole"))
    answer, calls = quick.QuickTeacher.__call__, []

    def ask(self, image_NHWC):
        calls.append(len(image_NHWC))
        if len(calls) == 2:  # of the first group, whose images come one by one
            send(number)
        return answer(self, image_NHWC)

    words = ["--config", "given.yaml", "--teacher.batch_size", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(quick.QuickTeacher, "__call__", ask)
        patch.setattr(signals, "PATIENCE_S", patience_s)
        calls.append(0)  # so that the signal comes with the first image, of two
        assert cache_teacher.cli.main(words) == SIGNALS[number]
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("cache_teacher: interrupted by SIG")
    assert len(list(Path("cache/commits").glob("*.json"))) == (1 if patience_s > 0 else 0)
    assert calls == ([0, 1, 1] if patience_s > 0 else [0, 1])
    assert not list(Path("cache").rglob("*.partial"))
    assert cache_teacher.cli.main(words) == 0
    assert quick.snapshot(Path("cache")) == whole


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_goes_on_bit_for_bit(world, monkeypatch, capsys, number):
    assert cache_teacher.cli.main(["--config", "given.yaml"]) == 0
    train = ["--config", "given.yaml", "--run.dir"]
    assert train_student.cli.main([*train, "whole/kd"]) == 0
    step, steps = loop.train_step, []

    def train_step(*args, **options):
        steps.append(1)
        if len(steps) == 3:  # in the second epoch
            send(number)
        return step(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", train_step)
        assert train_student.cli.main([*train, "run/kd"]) == SIGNALS[number]
    assert capsys.readouterr().err.splitlines()[-1].startswith("train_student: interrupted by SIG")
    assert train_student.cli.main([*train, "run/kd", "--run.resume"]) == 0
    ours, theirs = (
        torch.load(f"{name}/kd/student_kd_last.pth", weights_only=True) for name in ("run", "whole")
    )
    for part in ("model_state_dict", "alignment_state_dict"):
        assert all(torch.equal(value, theirs[part][key]) for key, value in ours[part].items())
