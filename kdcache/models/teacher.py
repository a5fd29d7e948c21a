"""The frozen teacher: images in, logits and features out; and a look at whether what it gives can
be stored, and is the same again, before it is asked about a data set.

Letters: N batch, K classes, C channels, H, W height and width of images, h, w of a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor, nn
from torchvision.models import get_model

from kdcache.config import STRIDE, TeacherConfig
from kdcache.config.names import AS_BUILT, FCNS, TRANSFORMERS, Precision
from kdcache.errors import KdcacheError, Phrase, TeacherError, describe, is_of_machine, one_line
from kdcache.machine.devices import check_precision, choose_device, use_teacher_kernels
from kdcache.models.checkpoints import describe_state, find_prefix, is_counter
from kdcache.models.inputs import IMAGENET_MEAN, IMAGENET_STD, normalize_images, resize_to
from kdcache.models.networks import (
    STRIDES,
    Network,
    Parts,
    build_network,
    describe_kind,
    find_logits,
    find_stride,
    refuse_layer,
    refuse_network,
    wrap_torchvision,
)
from kdcache.models.weights import read_teacher_weights, take_weights

AUTOCAST = {"float32": None, "tf32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
Answers = dict[str, Tensor]
SAME = 1e-3  # of the largest value: what two answers to one image may differ by, on any device
_STRIDES = f"{', '.join(map(str, STRIDES[:-1]))} or {STRIDES[-1]} pixels"


class Teacher:
    """A frozen network: uint8 images in; logits before the upsampling, and features, out.

    Args:
        network: put into eval mode, its weights frozen.
        taps: level -> part, e.g. {"low": "layer1"}.
        device: where it runs.
        precision: float32 (exact), tf32, bfloat16 or float16 (autocast).
        high_stride: stride in pixels that `high` is resized to, whatever its tap has.
        mean, std: what normalises images, of RGB from 0 to 1.
        cudnn_benchmark: whether a GPU may choose convolutions by trying them.
    """

    def __init__(
        self,
        network: Network,
        *,
        taps: dict[str, str],
        device: torch.device,
        precision: str,
        high_stride: int = STRIDE,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        cudnn_benchmark: bool = False,
    ) -> None:
        self.parts = Parts(network.module, taps, stages=network.stages)
        self.network, self.high_stride = network, high_stride
        self.mean, self.std = tuple(mean), tuple(std)
        module = network.module.float()  # one of half precision takes no float32 images
        self.model = module.to(device, memory_format=network.memory_format)
        self.model.eval().requires_grad_(False)
        self.taps, self.device, self.dtype = taps, device, AUTOCAST[precision]
        self.kernels = {"tf32": precision == "tf32", "benchmark": cudnn_benchmark}
        self._targets: dict[tuple, dict[str, tuple[int, int]]] = {}

    @torch.inference_mode()
    def __call__(self, image_NHWC: Tensor) -> dict[str, Tensor]:
        """Logits and features of uint8 RGB images [N, H, W, 3], H and W multiples of 16.

        Returns: float32 "logits" [N, num_classes, h, w], as the network gives them before its
            upsampling, and each level [N, C, h, w]; `high` is at `high_stride`.
        Raises: TeacherError for what no logits are, SettingsError for what no features are.
        """
        hw = image_NHWC.shape[1:3]
        x = normalize_images(self._upload(image_NHWC), mean=self.mean, std=self.std)
        x = x.contiguous(memory_format=self.network.memory_format)
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)
        with use_teacher_kernels(**self.kernels), autocast:
            logits = ask_network(self.network, x)
        answer = {**self.parts.take(hw), "logits": logits}
        if "high" in answer:
            answer["high"] = resize_to(
                answer["high"].float(), tuple(px // self.high_stride for px in hw)
            )
        return {name: value.float() for name, value in answer.items()}

    def probe_targets(
        self, size_hw: tuple[int, int], val_hw: tuple[int, int]
    ) -> dict[str, tuple[int, int]]:
        """Logits and each level -> (channels, stride in pixels), found by asking about an image.

        Args:
            size_hw, val_hw: heights and widths of training and validation views in pixels.

        Raises: TeacherError or SettingsError for answers that cannot be stored.
        """
        if (size_hw, val_hw) not in self._targets:
            small_hw = (4 * STRIDE, 4 * STRIDE)
            sizes = [small_hw] if self.network.one_stride else [*{size_hw: 0, val_hw: 0}]
            self._targets[size_hw, val_hw] = probe(self, self.network, self.taps, sizes)
        return self._targets[size_hw, val_hw]

    def _upload(self, image_NHWC: Tensor) -> Tensor:
        """To the device, from pinned memory: a copy from other memory waits for the GPU's queue."""
        if self.device.type == "cuda" and not image_NHWC.is_cuda:
            image_NHWC = image_NHWC.pin_memory()
        return image_NHWC.to(self.device, non_blocking=True)


def ask_network(network: Network, x_NCHW: Tensor) -> Tensor:
    """The logits [N, K, h, w] that a network gives for normalised images. Raises TeacherError."""
    size = f"{x_NCHW.shape[2]}x{x_NCHW.shape[3]}"
    mode = "training" if network.module.training else "eval"
    try:
        given = network.ask(x_NCHW)
    except (Exception, SystemExit) as error:  # whatever code of others meets
        if isinstance(error, KdcacheError) or is_of_machine(error):
            raise
        count = f"{len(x_NCHW)} in training mode" if network.module.training else "an image"
        found = f"failing at {count} of {size} ({one_line(error, named=True)})"
        raise refuse_network(network.name, found, "to give logits") from None
    logits, count = find_logits(given), network.num_classes
    if logits is None or logits.ndim != 4 or logits.shape[:2] != (len(x_NCHW), count):
        found = f"giving {describe_kind(given if logits is None else logits)} in {mode} mode"
        expected = f"logits [{len(x_NCHW)}, {count}, height, width]"
        expected += f" for {len(x_NCHW)} images of {size}, dataset.num_classes {count}"
        raise refuse_network(network.name, found, expected)
    return logits


def choose_teacher_device(config: TeacherConfig) -> torch.device:
    """The device of `teacher.device`. Raises SettingsError if it lacks `teacher.precision`."""
    device = choose_device(config.device, field="teacher.device")
    known = get_args(Precision)
    check_precision(config.precision, device, field="teacher.precision", known=known)
    return device


def build_teacher(
    config: TeacherConfig, *, num_classes: int, levels: list[str], device: torch.device
):
    """The teacher of the settings, and its state dict (for `hash_weights`).

    Raises: TeacherError if weights are unreadable or for another number of classes; SettingsError
        for an unknown tap.
    """
    state = None
    if config.weights != AS_BUILT:
        state = read_teacher_weights(config.arch, config.weights, key=config.weights_key)
    if config.arch in FCNS:
        with torch.device("meta"):  # 35 million weights that would be drawn and thrown away
            model = build_fcn(config.arch, num_classes=num_classes, aux_head=False)
        network = wrap_torchvision(model, num_classes=num_classes, name=config.arch)
    else:
        network = build_network(config, num_classes=num_classes, state=state)
    if state is None or config.arch.startswith(TRANSFORMERS):
        state = take_weights(network.module, where=f"teacher.arch {config.arch}")
    else:
        load_weights(network.module, state, where=config.weights, num_classes=num_classes)
    taps = {level: getattr(config.layers, level) for level in levels}
    names = ("precision", "high_stride", "mean", "std", "cudnn_benchmark")
    asked = {name: getattr(config, name) for name in names}
    return Teacher(network, taps=taps, device=device, **asked), state


def build_fcn(arch: str, *, num_classes: int, aux_head: bool) -> nn.Module:
    """torchvision's FCN with fresh weights.

    fcn_resnet50 with its auxiliary head has 35,322,218 parameters at 21 classes.
    """
    return get_model(
        arch, weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=aux_head
    )


def load_weights(
    model: nn.Module, state: dict[str, Tensor], *, where: str, num_classes: int
) -> None:
    """Give a model, which may be on the meta device, all tensors of `state`.

    Raises: TeacherError naming the class count or the first name or shape that differs.
    """
    own = model.state_dict()
    names = match_names(own, state)
    expected = {name: tuple(own[name].shape) for name in own}
    found = {names[name]: tuple(value.shape) for name, value in state.items()}
    for name in expected.keys() & found.keys():
        count, *rest = found[name] or (0,)
        if expected[name] == (num_classes, *rest) and count != num_classes:
            raise _refuse_classes(where, count, num_classes)
    counters = {name for name in own if is_counter(name)}
    missing = {name: torch.zeros((), dtype=torch.int64) for name in counters - found.keys()}
    for name in sorted(expected.keys() - missing.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise _refuse_tensor(where, name, found, expected)
    fitting = {names[name]: value.to(own[names[name]].dtype) for name, value in state.items()}
    on_meta = any(value.is_meta for value in own.values())
    model.load_state_dict({**fitting, **missing}, assign=on_meta)


def match_names(own: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, str]:
    """Name in the file -> name in the model, whose own names may have a prefix of wrappers.

    Args:
        own: tensors of the model. state: those of the file, without such a prefix.
    """
    prefix = find_prefix(own)
    return {name: name if name in own else f"{prefix}{name}" for name in state}


def _refuse_tensor(where: str, name: str, found: dict, expected: dict) -> TeacherError:
    """The error for weights of another model, by its kind, else by a tensor's name."""
    kinds = [describe_state(names) for names in (found, expected)]
    none = Phrase("missing")
    field, shown, wanted = f"tensor {name}", found.get(name, none), expected.get(name, none)
    if kinds[0] and kinds[0] != kinds[1]:
        field, shown = "teacher", Phrase(kinds[0])
        wanted = Phrase(kinds[1] or "the model of teacher.arch")
    cure = "use weights of teacher.arch, or set it"
    return TeacherError(describe(where, field=field, found=shown, expected=wanted, cure=cure))


def _refuse_classes(where: str, found: int, expected: int) -> TeacherError:
    """The error for weights of another number of classes."""
    shown = f"{found} with background" if found == expected + 1 else found
    cure = "set dataset.num_classes or fit a teacher with `python -m cache_teacher fit`"
    return TeacherError(
        describe(
            where, field="number of classes", found=Phrase(shown), expected=expected, cure=cure
        )
    )


def probe(
    ask: Callable[[Tensor], Answers], network: Network, layers: dict[str, str], sizes: list
) -> dict[str, tuple[int, int]]:
    """Logits and each level -> (channels, stride in pixels).

    Args:
        ask: uint8 images [N, H, W, 3] -> float32 answers by name.
        layers: level -> part, for messages.
        sizes: (H, W) of the images that are asked about; levels count in the first.

    Raises: TeacherError for logits that cannot be stored, SettingsError for a level.
    """
    found: dict[str, tuple[int, int]] = {}
    for hw in sizes:
        image = _draw(hw)
        answers = ask(image)
        if not network.one_stride:  # else torchvision's, which is known
            _check_values(network, answers, again=ask(image))
        names = ("logits",) if found else ("logits", *layers)
        strides = {name: find_stride(answers[name].shape[2:], hw) for name in names}
        for name, stride in strides.items():
            shape = (answers[name].shape[1], stride)
            if stride not in STRIDES or found.setdefault(name, shape) != shape:
                raise _refuse_grid(network, name, layers, answers[name], hw)
    return found


def _draw(hw: tuple[int, int]) -> Tensor:
    """An image [1, H, W, 3] of all values, the same each time."""
    return (torch.arange(3 * hw[0] * hw[1]) * 7919 % 251).to(torch.uint8).reshape(1, *hw, 3)


def _check_values(network: Network, answers: Answers, *, again: Answers) -> None:
    """Check that answers are finite and the same again, and that the network is as it was."""
    if any(module.training for module in network.module.modules()):
        found = "in training mode after it was asked"
        raise refuse_network(network.name, found, "a module that stays in eval mode")
    for name, values in answers.items():
        if not torch.isfinite(values).all():
            raise refuse_network(network.name, f"giving {name} that are not finite", "numbers")
        if (values - again[name]).abs().max() > SAME * values.abs().max():
            found = f"giving other {name} for the same image"
            raise refuse_network(network.name, found, "one answer: draw nothing, keep nothing")


def _refuse_grid(
    network: Network, name: str, layers: dict[str, str], values: Tensor, hw: tuple[int, int]
) -> Exception:
    found = f"giving {name} {list(values.shape)} for images of {hw[0]}x{hw[1]}"
    expected = f"one cell every {_STRIDES}, for training and validation views alike"
    if name == "logits":
        return refuse_network(network.name, found, f"{expected} (or other dataset.size)")
    return refuse_layer(name, layers[name], found, f"{expected} (high alone is resized)")
