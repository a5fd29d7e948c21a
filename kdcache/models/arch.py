"""The student named by `student.arch`: the built-in one, or your own module."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from kdcache.config import StudentConfig
from kdcache.config.names import BUILT_IN_STUDENT
from kdcache.errors import KdcacheError, Phrase, SettingsError, describe, one_line
from kdcache.models.inputs import resize_to
from kdcache.models.own_code import hash_file, let_import_from_here
from kdcache.models.student import LightweightSegmentationModel

RETURNS = "(logits [N, num_classes, H, W] on any grid, {level: features [N, C, H, W]})"


class OwnStudent(nn.Module):
    """Your module with the interface of `LightweightSegmentationModel`; weights keep their names.

    Args:
        module: image [N, 3, H, W] -> (logits [N, num_classes, h, w] on any grid, {level: features
            [N, C, h, w]}).
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image_NCHW: Tensor, *, return_features: bool = False, full_size: bool = True):
        """Logits upsampled to the image, or (logits, features) if `return_features`.

        Args:
            image_NCHW: normalised float32 images.
            full_size: upsample the logits to the size of the image.
        """
        logits, features = self.module(image_NCHW)
        if full_size:
            logits = resize_to(logits, image_NCHW.shape[-2:])
        return (logits, features) if return_features else logits

    def state_dict(self, *args: object, **options: object) -> dict:
        """The state dict of your module, without a prefix."""
        return self.module.state_dict(*args, **options)

    def load_state_dict(self, state_dict: Mapping, *args: object, **options: object) -> object:
        """Load a state dict of your module, without a prefix."""
        return self.module.load_state_dict(state_dict, *args, **options)


def build_student(
    config: StudentConfig, *, num_classes: int, pretrained: bool | None = None
) -> nn.Module:
    """The student, initialised from torch's random state, on the CPU.

    Args:
        pretrained: overrides the setting; False if weights are loaded afterwards.

    Raises: SettingsError if `student.arch` cannot be imported, fails, or returns no module.
    """
    if config.arch == BUILT_IN_STUDENT:
        pretrained = config.pretrained if pretrained is None else pretrained
        return LightweightSegmentationModel(
            num_classes, pretrained=pretrained, aspp_channels=config.aspp_channels
        )
    function = find_function(config.arch)
    try:
        module = function(num_classes=num_classes, **config.options)
    except KdcacheError:
        raise
    except (Exception, SystemExit) as error:  # whatever code of yours meets
        expected = "a function of num_classes and student.options"
        raise _refuse(config.arch, f"failing ({one_line(error, named=True)})", expected) from None
    if not isinstance(module, nn.Module):
        raise _refuse(
            config.arch,
            f"giving a {type(module).__name__}",
            "a function that gives a torch.nn.Module",
        )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise _refuse(config.arch, "without parameters to train", "one at least")
    return OwnStudent(module)


def recall_student(facts: Mapping[str, object]) -> StudentConfig:
    """The student settings of a run, from the hyperparameters it stored.

    Raises: KeyError if they are not those of a run.
    """
    arch = facts.get("student.arch", BUILT_IN_STUDENT)
    if arch == BUILT_IN_STUDENT:
        return StudentConfig(pretrained=False, aspp_channels=facts["student.aspp_channels"])
    return StudentConfig(arch=arch, options=facts["student.options"], pretrained=False)


def find_function(arch: str) -> Callable:
    """`package.module:function`, imported. Raises SettingsError."""
    package, _, name = arch.partition(":")
    let_import_from_here()
    try:
        return getattr(importlib.import_module(package), name)
    except (Exception, SystemExit) as error:  # whatever code of yours meets
        expected = "package.module:function that can be imported from here"
        raise _refuse(arch, f"no such function ({one_line(error, named=True)})", expected) from None


def hash_source(arch: str) -> str:
    """12 hex digits of the sha256 of the file that defines `student.arch`, or "unknown".

    They differ if another student has the same name. Files that it imports are not hashed.
    """
    source = find_source(arch)
    return hash_file(Path(source)) if source else "unknown"


def find_source(arch: str) -> str | None:
    """The file that defines a function; None if it is built into Python or typed in.

    Raises: SettingsError if there is no such function.
    """
    try:
        source = inspect.getsourcefile(inspect.unwrap(find_function(arch)))
        return source if source and Path(source).is_file() else None
    except (TypeError, OSError):
        return None


def find_channels(
    student: nn.Module, levels: Iterable[str], *, arch: str, num_classes: int, hw: tuple[int, int]
) -> dict[str, int]:
    """level -> channels of the student's features, found with a forward pass of an empty image.

    A copy of your own student also gets two images in training mode.

    Args:
        arch: `student.arch`, for messages.
        hw: height and width of the images in pixels.

    Raises: SettingsError if it does not return what a student must, or lacks a level.
    """
    training = student.training
    answer = _ask(student.eval(), 1, hw, arch=arch)
    student.train(training)
    _check_answer(answer, levels, arch=arch, num_classes=num_classes)
    if arch != BUILT_IN_STUDENT:
        with torch.random.fork_rng([]):
            _ask(copy.deepcopy(student).train(), 2, hw, arch=arch)
    return {level: answer[1][level].shape[1] for level in levels}


@torch.no_grad()
def _ask(student: nn.Module, count: int, hw: tuple[int, int], *, arch: str) -> tuple:
    try:
        return student(torch.zeros(count, 3, *hw), return_features=True, full_size=False)
    except (Exception, SystemExit) as error:  # whatever code of yours meets
        what = "two images in training mode," if student.training else "an image"
        found = f"failing at {what} of {hw[0]}x{hw[1]} ({one_line(error, named=True)})"
        raise _refuse(arch, found, f"to return {RETURNS}") from None


def _check_answer(answer: tuple, levels: Iterable[str], *, arch: str, num_classes: int) -> None:
    logits, features = answer
    if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[:2] != (1, num_classes):
        found = f"returning logits {_shape(logits)} for one image"
        raise _refuse(
            arch,
            found,
            f"logits [1, {num_classes}, height, width], dataset.num_classes {num_classes}",
        )
    for level in levels:
        there = features.get(level) if isinstance(features, Mapping) else None
        if not isinstance(there, Tensor) or there.ndim != 4:
            found = f"returning {_shape(there)} as features of level {level!r}"
            given = f"[{', '.join(map(str, features))}]" if isinstance(features, Mapping) else "[]"
            need = (
                f"[N, C, H, W] of each of cache.levels {list(levels)} (or set cache.levels {given})"
            )
            raise _refuse(arch, found, need)


def _shape(value: object) -> str:
    if isinstance(value, Tensor):
        return str(list(value.shape))
    return "nothing" if value is None else f"a {type(value).__name__}"


def _refuse(arch: str, found: str, expected: str) -> SettingsError:
    field, cure = f"student.arch {arch}", "mend it or change student.arch"
    return SettingsError(
        describe("settings", field=field, found=Phrase(found), expected=Phrase(expected), cure=cure)
    )
