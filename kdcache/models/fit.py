"""Fine-tunes a teacher on the configured data set: for the demo and classes other than VOC's."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.config import Config, config_to_dict
from kdcache.data.views import VOID, apply, draw, fit_inside
from kdcache.data.voc import Sample, download_voc, find_samples, read_sample, read_split
from kdcache.errors import SettingsError, TeacherError, TrainingError
from kdcache.machine.devices import choose_device, supports_bfloat16
from kdcache.metrics import compute_miou, count_confusion
from kdcache.models.inputs import normalize_images, resize_to
from kdcache.models.teacher import build_fcn
from kdcache.models.weights import (
    AUX_PREFIX,
    WeightsAbsentError,
    find_weights_enum,
    read_teacher_weights,
)
from kdcache.progress import Progress, Say, Silent

log = logging.getLogger("kdcache")
AUX_WEIGHT = 0.4  # of the auxiliary head's loss, as in PSPNet (Zhao et al. 2017, arXiv:1612.01105)
WEIGHT_DECAY = 1e-4
WARMUP = 0.1  # share of all steps


def fit_teacher(
    config: Config, *, progress: Progress | None = None, say: Say = lambda text: None
) -> float:
    """Train an FCN with its auxiliary head on random training views, and write `fit.out`.

    Training starts from `teacher.weights`; a head for other classes is initialised anew. It starts
    from scratch if these are torchvision's and out of reach, or are `fit.out`, not written yet.

    Returns: mIoU on val, 0 to 1.

    Raises: DataError, SettingsError, or TrainingError at a non-finite loss.
    """
    progress = progress or Silent()
    device = choose_device(config.teacher.device, field="teacher.device")
    check_writable(config.fit.out)
    download_voc(config.dataset)
    with progress.start("checking data", total=None, unit="samples") as bar:
        samples = read_split(
            config.dataset, config.dataset.train_split, advance=bar.advance
        ).samples
        read_split(config.dataset, config.dataset.val_split, advance=bar.advance)
    torch.manual_seed(config.train.seed)
    model = build_start(config, say=say).to(device, memory_format=torch.channels_last)
    _train(model, config, samples, device=device, progress=progress, say=say)
    save_teacher(
        config.fit.out, model, config, miou=None
    )  # first: scoring must not cost the training
    miou = score(model, config, device=device, progress=progress)
    save_teacher(config.fit.out, model, config, miou=miou)
    say(f"{config.fit.out}: teacher written, mIoU on val {miou:.4f}")
    return miou


def build_start(config: Config, *, say: Say) -> nn.Module:
    """The model to start from, with `teacher.weights`.

    Weights are fresh if torchvision's are out of reach or `fit.out` is not written yet.

    Raises: TeacherError if the weights are missing, unreadable or not of `teacher.arch`.
    """
    model = build_fcn(config.teacher.arch, num_classes=config.dataset.num_classes, aux_head=True)
    try:
        state = read_teacher_weights(config.teacher.arch, config.teacher.weights)
    except WeightsAbsentError as error:
        if find_weights_enum(
            config.teacher.arch, config.teacher.weights
        ) is None and config.teacher.weights != str(config.fit.out):
            raise
        absent = config.teacher.weights == str(config.fit.out)
        say(f"from scratch, since {f'{config.fit.out} is not there yet' if absent else error}")
        return _calm_residuals(model)
    own = model.state_dict()
    fitting = {
        name: value
        for name, value in state.items()
        if name in own and value.shape == own[name].shape
    }
    if len(fitting) < len([name for name in own if name.startswith("backbone.")]):
        raise TeacherError(
            f"{config.teacher.weights}: weights are not those of a {config.teacher.arch}; "
            "set teacher.weights"
        )
    model.load_state_dict(fitting, strict=False)
    fresh = [name for name in own if name not in fitting and not name.startswith(AUX_PREFIX)]
    say(
        f"from {config.teacher.weights}"
        + (f", with a new head for {config.dataset.num_classes} classes" if fresh else "")
    )
    return model


def _train(
    model: nn.Module,
    config: Config,
    samples: tuple[Sample, ...],
    *,
    device: torch.device,
    progress: Progress,
    say: Say,
):
    size, epochs = min(config.fit.batch_size, len(samples)), config.fit.epochs
    per_epoch = len(samples) // size
    steps, losses = epochs * per_epoch, []
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.fit.lr, weight_decay=WEIGHT_DECAY, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.fit.lr, total_steps=steps + 1, pct_start=WARMUP
    )
    with progress.start("fitting the teacher", total=steps * size, unit="samples") as bar:
        model.train()
        for step, (images, labels) in enumerate(
            _random_batches(config, samples, steps=steps, size=size)
        ):
            losses.append(
                _step(
                    model, optimizer, images.to(device), labels.to(device), where=f"fit step {step}"
                )
            )
            schedule.step()
            bar.advance(size)
            if len(losses) == per_epoch:
                say(
                    f"epoch {(step + 1) // per_epoch}/{epochs}  "
                    f"mean loss {sum(losses) / per_epoch:.4f}"
                )
                losses.clear()


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    where: str,
) -> float:
    bf16 = images.device.type == "cuda" and supports_bfloat16(images.device)
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
        answer = model(normalize_images(images))
    target = labels.long()
    loss = sum(
        weight * F.cross_entropy(answer[head].float(), target, ignore_index=VOID, reduction="sum")
        for head, weight in (("out", 1.0), ("aux", AUX_WEIGHT))
    ) / (target != VOID).sum().clamp(min=1)
    if not torch.isfinite(loss):
        raise TrainingError(
            f"{where}: loss is {loss.item()}, expected a finite number; lower fit.lr"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()


def _random_batches(
    config: Config, samples: tuple[Sample, ...], *, steps: int, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` batches of fresh views, made one batch ahead; view numbers count the epochs."""
    order = np.random.Generator(np.random.Philox(config.train.seed))
    per_epoch = len(samples) // size
    jobs = []
    for epoch in range(-(-steps // per_epoch)):
        chosen = order.permutation(len(samples))
        jobs += [
            [(samples[k], epoch) for k in chosen[start * size : (start + 1) * size]]
            for start in range(per_epoch)
        ]
    with ThreadPoolExecutor(2) as pool:
        coming = [pool.submit(_make_view, config, *job) for job in jobs[0]]
        for step in range(steps):
            made = [future.result() for future in coming]
            coming = (
                [pool.submit(_make_view, config, *job) for job in jobs[step + 1]]
                if step + 1 < steps
                else []
            )
            images, labels = zip(*made, strict=True)
            yield torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))


def _make_view(config: Config, sample: Sample, view: int) -> tuple[np.ndarray, np.ndarray]:
    image, label = read_sample(config.dataset, sample)
    size_hw = config.dataset.size_hw
    return apply(
        draw(config.augment, sample_id=sample.id, view=view, image_hw=label.shape, size_hw=size_hw),
        image,
        label,
    )


@torch.inference_mode()
def score(model: nn.Module, config: Config, *, device: torch.device, progress: Progress) -> float:
    """mIoU (0 to 1) of a teacher on val."""
    model.eval()
    num_classes, samples = (
        config.dataset.num_classes,
        find_samples(config.dataset, config.dataset.val_split),
    )
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    with progress.start("teacher's mIoU on val", total=len(samples), unit="samples") as bar:
        for sample in samples:
            image, label, _ = fit_inside(
                *read_sample(config.dataset, sample), size_hw=config.dataset.val_hw
            )
            x = normalize_images(torch.from_numpy(image)[None].to(device))
            logits = resize_to(model.classifier(model.backbone(x)["out"]), label.shape)
            confusion += count_confusion(
                logits.argmax(1).cpu(), torch.from_numpy(label)[None], num_classes=num_classes
            )
            bar.advance(1)
    return compute_miou(confusion)


def save_teacher(path: Path, model: nn.Module, config: Config, *, miou: float | None) -> None:
    """Write a checkpoint that teacher.weights accepts, in one step."""
    partial = path.with_name(f"{path.name}.partial")
    facts = {"miou": miou, "class_names": config.dataset.names, "fit": config_to_dict(config.fit)}
    with partial.open("wb") as file:
        torch.save({"model_state_dict": model.state_dict(), **facts}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def check_writable(path: Path) -> None:
    """Raises SettingsError if `fit.out` cannot be written, before hours are spent."""
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f"{path.name}.partial")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SettingsError(
            f"{path}: fit.out is unwritable ({error.strerror}); set another path"
        ) from None


def _calm_residuals(model: nn.Module) -> nn.Module:
    """Start every residual branch at zero: from scratch, this saves the first epochs.

    Goyal et al. 2017, arXiv:1706.02677.
    """
    for module in model.modules():
        if hasattr(module, "bn3"):
            nn.init.zeros_(module.bn3.weight)
    return model
