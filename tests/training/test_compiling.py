"""torch.compile: when it is used, what is said of it, that it changes no number, and that its
failure ends nothing.
"""

from __future__ import annotations

import functools
import logging
import warnings

import pytest
import torch

from kdcache.config.parser import make_config, merge
from kdcache.machine import devices
from kdcache.machine.devices import choose_compiling
from kdcache.training import loop, run
from kdcache.training.batches import Batch
from kdcache.training.distill import distill
from kdcache.training.learner import build_learner
from kdcache.training.loop import train_step
from kdcache.training.processes import Alone
from kdcache.training.run import compile_learner
from kdcache.training.run_identity import hyperparameters

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CHANNELS = {"low": 5, "mid": 6, "high": 7}


def make_learner(loss: dict | None = None, **train: str):
    given = {
        "dataset": {"num_classes": 3, "size": 64},
        "student": {"pretrained": False, "aspp_channels": 8},
    }
    return build_learner(
        make_config({**given, "loss": loss or {}, "train": {"device": "cpu", **train}}),
        teacher_channels=CHANNELS,
    )


def take_step(learner, num: int):
    """A step of `num` samples, dropout always the same."""
    torch.manual_seed(1)
    learner.student.train()
    return train_step(learner, make_batch(num), where="")


def make_batch(num: int) -> Batch:
    draw = torch.Generator().manual_seed(num)
    arrays = {"image": torch.randint(0, 256, (num, 64, 64, 3), dtype=torch.uint8, generator=draw)}
    arrays["label"] = torch.randint(0, 3, (num, 64, 64), generator=draw).to(torch.uint8)
    arrays["logits"] = torch.randn(num, 3, 8, 8, generator=draw).half()
    sizes = {"low": 16, "mid": 8, "high": 4}
    arrays |= {
        level: torch.randn(num, CHANNELS[level], px, px, generator=draw).half()
        for level, px in sizes.items()
    }
    return Batch(arrays, [f"s{n}" for n in range(num)])


@pytest.mark.parametrize(
    ("setting", "device", "on"),
    [
        ("auto", CPU, False),
        ("on", CPU, True),
        ("off", CPU, False),
        ("auto", GPU, True),
        ("on", GPU, True),
        ("off", GPU, False),
    ],
)
def test_auto_compiles_for_gpus_only(monkeypatch, setting, device, on):
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(devices.shutil, "which", lambda name: name)
    chosen, line = choose_compiling(setting, device=device)
    assert chosen is on
    assert line.startswith(f"compile: {'on' if on else 'off'}, ") and "\n" not in line


@pytest.mark.parametrize("setting", ["auto", "on"])
def test_without_a_compiler_it_is_off_and_said(monkeypatch, setting):
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert choose_compiling(setting, device=GPU) == (
        False,
        "compile: off, the package triton is missing",
    )
    assert choose_compiling(setting, device=CPU) == (
        False,
        "compile: off, no C++ compiler (no-such-compiler) found",
    )


def test_a_compiled_step_is_a_plain_step(monkeypatch):
    """Traced by the real compiler front end; its back end leaves the operations as they are, which
    takes seconds.
    """
    monkeypatch.setattr(run.torch, "compile", functools.partial(torch.compile, backend="eager"))
    check_steps_are_equal(rel=1e-6)
    check_steps_are_equal(rel=1e-6, loss={"temperature": 1.0, "pseudo": 1.0})


@pytest.mark.nightly
def test_a_step_compiled_to_machine_code_is_a_plain_step():
    if not choose_compiling("on", device=CPU)[0]:
        pytest.skip("no C++ compiler")
    check_steps_are_equal(rel=1e-4)
    check_steps_are_equal(rel=1e-4, loss={"temperature": 1.0, "pseudo": 1.0})


def check_steps_are_equal(*, rel: float, loss: dict | None = None) -> None:
    plain, compiled = make_learner(loss), make_learner(loss)
    for module in (*plain.student.modules(), *compiled.student.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # compiled code draws other masks from the same seed
    compile_learner(compiled, [make_batch(3)])
    for num in (3, 2):  # the second size compiles anew
        expected, found = take_step(plain, num), take_step(compiled, num)
        assert {k: v.item() for k, v in found.means().items()} == pytest.approx(
            {k: v.item() for k, v in expected.means().items()}, rel=rel
        )
    assert compiled.student.state_dict().keys() == plain.student.state_dict().keys()


class Counting:
    """A compiler that counts how often it compiles, and leaves the operations as they are."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


def test_nothing_is_compiled_after_the_trial(given, built_root, monkeypatch):
    """In three epochs whose last batch is short: 10 samples in batches of 4."""
    counting, seen = Counting(), []
    compiler = functools.partial(torch.compile, backend=counting)
    monkeypatch.setattr(run.torch, "compile", compiler)
    monkeypatch.setattr(run, "choose_compiling", lambda setting, device: (True, "on"))
    train_step = loop.train_step

    def note(learner, batch, *, where):
        seen.append((counting.count, len(batch.sample_ids)))
        return train_step(learner, batch, where=where)

    monkeypatch.setattr(loop, "train_step", note)
    train = {"train": {"epochs": 3, "batch_size": 4}, "run": {"baseline": False}}
    outcome = distill(merge(given, train), root=built_root)
    assert [size for _, size in seen] == [4, 4, 2] * 3
    assert counting.count > 0 and {count for count, _ in seen} == {counting.count}
    assert outcome.student["compiled"] is True


def test_several_processes_on_gpus_do_not_compile_and_say_so(monkeypatch):
    learner, said = make_learner(), []
    learner.device, learner.processes = GPU, Several()
    monkeypatch.setattr(run, "choose_compiling", lambda setting, device: (True, "on"))
    monkeypatch.setattr(run, "compile_learner", None)
    config = make_config({"train": {"compile": "on"}})
    run.compile_where_worth(config, None, learner, batch_sizes=[2], say=said.append)
    assert said == ["compile: off, BatchNorm has the statistics of several GPUs"]
    assert not learner.compiled


class Several(Alone):
    count = 2


def fail(*args: object) -> None:
    raise RuntimeError("no ptxas\nlong story")


class FailsBackward(torch.autograd.Function):
    """What AOTAutograd does where only the backward graph cannot be lowered."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        fail()


def compile_without_backward(function):
    def compiled(*args, **kwargs):
        answer = function(*args, **kwargs)
        return (FailsBackward.apply(answer[0]), answer[1]) if "full_size" in kwargs else answer

    return compiled


@pytest.mark.parametrize(
    "broken", [lambda function: fail, compile_without_backward], ids=["forward", "backward"]
)
def test_a_compiler_that_fails_is_one_line_and_training_goes_on(monkeypatch, caplog, broken):
    plain, learner = make_learner(), make_learner()
    before, state = (
        {k: v.clone() for k, v in learner.student.state_dict().items()},
        torch.get_rng_state(),
    )
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="kdcache"):
        patch.setattr(run.torch, "compile", broken)
        compile_learner(learner, [make_batch(2)])
    (line,) = [record.getMessage() for record in caplog.records]
    assert (
        "\n" not in line
        and ("no ptxas" in line or "unexpected keyword" in line)
        and "going on without" in line
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(value, before[name]) for name, value in learner.student.state_dict().items()
    )
    assert all(parameter.grad is None for parameter in learner.student.parameters())
    for _ in range(2):
        assert take_step(learner, 2).total.item() == take_step(plain, 2).total.item()


def test_the_trial_of_a_compiler_that_works_leaves_nothing(monkeypatch):
    monkeypatch.setattr(run.torch, "compile", lambda function: function)
    learner = make_learner()
    before, state = (
        {k: v.clone() for k, v in learner.student.state_dict().items()},
        torch.get_rng_state(),
    )
    compile_learner(learner, [make_batch(2)])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(value, before[name]) for name, value in learner.student.state_dict().items()
    )


def test_what_a_compiler_warns_of_does_not_end_the_trial(monkeypatch):
    """Here, as in any program that turns warnings into errors, it would."""

    def compile_warning(function):
        warnings.warn("TensorFloat32 tensor cores available but not enabled", stacklevel=1)
        return function

    monkeypatch.setattr(run.torch, "compile", compile_warning)
    assert compile_learner(make_learner(), [make_batch(2)])


def test_compiled_and_plain_runs_are_different_runs(monkeypatch):
    monkeypatch.setattr(devices.shutil, "which", lambda name: name)
    names = {}
    for setting in ("auto", "off", "on"):
        config = make_config(
            {"student": {"pretrained": False}, "train": {"device": "cpu", "compile": setting}}
        )
        names[setting] = hyperparameters(config)
    assert names["auto"] == names["off"] and names["on"] == {**names["off"], "train.compile": "on"}


def test_an_error_of_the_computation_itself_is_not_swallowed(monkeypatch):
    monkeypatch.setattr(run.torch, "compile", lambda function: function)
    learner = make_learner()
    compile_learner(learner, [make_batch(2)])
    batch = make_batch(2)
    batch.arrays["label"] = batch.arrays["label"][:1]
    with pytest.raises(ValueError, match="label_NHW"):
        train_step(learner, batch, where="")
