"""The frozen FCN teacher and its feature taps. Letters: N batch, C channels, H height, W width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import get_model

from kdcache.config import STRIDE, TeacherConfig
from kdcache.errors import Phrase, SettingsError, TeacherError, describe
from kdcache.machine.devices import use_exact_float32
from kdcache.models.inputs import normalize_images, resize_to
from kdcache.models.weights import read_teacher_weights

AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Teacher:
    """A frozen FCN: uint8 images in; logits before the upsampling, and tapped features, out.

    Args:
        model: torchvision FCN without auxiliary head, in eval mode.
        taps: level -> backbone part, e.g. {"low": "layer1"}.
        device: where it runs.
        precision: float32 (exact, TF32 off), bfloat16 or float16 (autocast).
        high_stride: stride in pixels that `high` is resized to, whatever its tap has.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        taps: dict[str, str],
        device: torch.device,
        precision: str,
        high_stride: int = STRIDE,
    ) -> None:
        check_taps(model, taps)
        self.high_stride = high_stride
        self.model = (
            model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        )
        self.taps, self.device, self.dtype = taps, device, AUTOCAST[precision]
        if self.dtype is None:
            use_exact_float32()

    @torch.inference_mode()
    def __call__(self, image_NHWC: Tensor) -> dict[str, Tensor]:
        """Logits and features of uint8 RGB images [N, H, W, 3], H and W multiples of 16.

        Returns: float32 "logits" [N, num_classes, H/8, W/8] and each level [N, C, h, w]; `high` is
            at `high_stride`.
        """
        hw = image_NHWC.shape[1:3]
        x = normalize_images(self._upload(image_NHWC)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            answer = self._forward(x)
        if "high" in answer:
            answer["high"] = resize_to(
                answer["high"].float(), tuple(px // self.high_stride for px in hw)
            )
        return {name: value.float() for name, value in answer.items()}

    def probe_targets(self) -> dict[str, tuple[int, int]]:
        """Logits and each level -> (channels, stride in pixels), found by asking about an image."""
        px = 4 * STRIDE
        answer = self(torch.zeros(1, px, px, 3, dtype=torch.uint8))
        return {
            name: (answer[name].shape[1], px // answer[name].shape[2])
            for name in ("logits", *self.taps)
        }

    def _upload(self, image_NHWC: Tensor) -> Tensor:
        """To the device, from pinned memory: a copy from other memory waits for the GPU's queue."""
        if self.device.type == "cuda" and not image_NHWC.is_cuda:
            image_NHWC = image_NHWC.pin_memory()
        return image_NHWC.to(self.device, non_blocking=True)

    def _forward(self, x: Tensor) -> dict[str, Tensor]:
        answer = {}
        for name, part in self.model.backbone.items():
            x = part(x)
            answer.update({level: x for level, tap in self.taps.items() if tap == name})
        answer["logits"] = self.model.classifier(x)
        return answer


def build_teacher(
    config: TeacherConfig, *, num_classes: int, levels: list[str], device: torch.device
):
    """The teacher of the settings, and its state dict (for `hash_weights`).

    Raises: TeacherError if weights are unreadable or for another number of classes; SettingsError
        for an unknown tap.
    """
    state = read_teacher_weights(config.arch, config.weights)
    with torch.device("meta"):  # 35 million weights that would be drawn and thrown away
        model = build_fcn(config.arch, num_classes=num_classes, aux_head=False)
    load_weights(model, state, where=config.weights, num_classes=num_classes)
    taps = {level: getattr(config.layers, level) for level in levels}
    asked = {"precision": config.precision, "high_stride": config.high_stride}
    return Teacher(model, taps=taps, device=device, **asked), state


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
    head = state.get("classifier.4.weight")
    if head is not None and head.shape[0] != num_classes:
        cure = "set dataset.num_classes or fit a teacher with `python -m cache_teacher fit`"
        raise TeacherError(
            describe(
                where,
                field="number of classes",
                found=head.shape[0],
                expected=num_classes,
                cure=cure,
            )
        )
    own = model.state_dict()
    expected = {name: tuple(value.shape) for name, value in own.items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            cure = "use weights of teacher.arch"
            raise TeacherError(
                describe(
                    where,
                    field=f"tensor {name}",
                    found=found.get(name),
                    expected=expected.get(name),
                    cure=cure,
                )
            )
    fitting = {name: value.to(own[name].dtype) for name, value in state.items()}
    model.load_state_dict(fitting, assign=True)


def check_taps(model: nn.Module, taps: dict[str, str]) -> None:
    """Raises SettingsError if a tap is not a part of the backbone."""
    known = [
        name for name in dict(model.backbone.items()) if name.startswith("layer")
    ]  # bn1's output is overwritten in place
    for level, tap in taps.items():
        if tap not in known:
            expected = Phrase("one of " + ", ".join(known))
            raise SettingsError(
                describe(
                    "settings",
                    field=f"teacher.layers.{level}",
                    found=tap,
                    expected=expected,
                    cure="choose one",
                )
            )
