"""Fitting a teacher to the views that phase one caches: batches, steps, averaged weights, and the
best epoch so far.

N: batch, H, W: size of a view, K: classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.config import VOID, Config
from kdcache.data.pictures import Sample, read_sample
from kdcache.data.views import apply, draw, fit_inside
from kdcache.data.voc import find_samples
from kdcache.errors import TrainingError
from kdcache.machine.devices import supports_bfloat16
from kdcache.metrics import compute_miou, count_confusion
from kdcache.models.inputs import normalize_images, resize_to
from kdcache.models.stored_state import restore_optimizer, restore_scheduler
from kdcache.progress import Bar


def plan_epoch(num_samples: int, *, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Batches of sample numbers: every sample once, in an order drawn from (seed, epoch).

    Sizes differ by one at most, so that no batch is one sample where that can be avoided: its
    statistics would move BatchNorm as much as those of a whole batch.
    """
    order = np.random.default_rng([seed, epoch]).permutation(num_samples)
    return np.array_split(order, -(-num_samples // batch_size))


def make_batches(
    config: Config, samples: Sequence[Sample], batches: Sequence[np.ndarray], *, view: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images uint8 [N, H, W, 3] and labels uint8 [N, H, W] of each batch, made one batch ahead.

    Args:
        batches: sample numbers. view: which view of each sample, 0 or more; those below
            `augment.views` are the cached ones.
    """
    with ThreadPoolExecutor(2) as pool:

        def start(batch: np.ndarray) -> list:
            return [pool.submit(make_view, config, samples[k], view) for k in batch]

        coming = start(batches[0])
        for batch in [*batches[1:], []]:
            made, coming = [future.result() for future in coming], start(batch)
            images, labels = zip(*made, strict=True)
            yield torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))


def make_view(config: Config, sample: Sample, view: int) -> tuple[np.ndarray, np.ndarray]:
    """A view as phase one stores it: image uint8 [H, W, 3], label uint8 [H, W]."""
    image, label = read_sample(config.dataset, sample)
    size_hw = config.dataset.size_hw
    drawn = draw(
        config.augment, sample_id=sample.id, view=view, image_hw=label.shape, size_hw=size_hw
    )
    return apply(drawn, image, label)


def weigh_classes(config: Config, samples: Sequence[Sample]) -> Tensor | None:
    """Weights float32 [K] of the classes as `fit.class_weights` says; None if all are equal."""
    if config.fit.class_weights == "none":
        return None
    with ThreadPoolExecutor(2) as pool:
        counts = pool.map(lambda sample: _count_pixels(config, sample), samples)
        return weigh_by_frequency(sum(counts))


def weigh_by_frequency(pixels_K: np.ndarray) -> Tensor:
    """The square root of the inverse frequency, float32 [K], with mean 1 over classes that occur.

    A class that does not occur weighs 1, and nothing.

    >>> weigh_by_frequency(np.array([900, 100, 0]))
    tensor([0.5000, 1.5000, 1.0000])
    """
    there = pixels_K > 0
    roots = 1 / np.sqrt(np.where(there, pixels_K, 1))
    weights = np.where(there, roots / roots[there].mean(), 1.0)
    return torch.from_numpy(weights).float()


def _count_pixels(config: Config, sample: Sample) -> np.ndarray:
    label = read_sample(config.dataset, sample)[1]
    return np.bincount(label[label != VOID], minlength=config.dataset.num_classes)


AUX_WEIGHT = 0.4  # of the auxiliary head's loss, as in PSPNet (Zhao et al. 2017, arXiv:1612.01105)
WEIGHT_DECAY = 1e-4
WARMUP = 0.1  # share of all steps


class Fitting:
    """A teacher that is being fitted.

    Attributes:
        epoch: epochs trained. history: a dict of "epoch", "loss" and "miou" (None if the epoch is
        not scored) for each of them. best: weights of the epoch that scored best, on the host.
    """

    def __init__(
        self, model: nn.Module, config: Config, samples: Sequence[Sample], *, device: torch.device
    ) -> None:
        self.model = model.to(device, memory_format=torch.channels_last)
        self.config, self.samples, self.device = config, samples, device
        self.average = copy.deepcopy(self.model) if config.fit.ema is not None else None
        self.autocast = {"device_type": device.type, **choose_arithmetic(config, device)}
        weights_K = weigh_classes(config, samples)
        self.weights_K = None if weights_K is None else weights_K.to(device)
        fit = config.fit
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=fit.lr, weight_decay=WEIGHT_DECAY, fused=True
        )
        steps = fit.epochs * -(-len(samples) // fit.batch_size) + 1
        warmup = max(WARMUP, min(2 / steps, 1))  # one step or more, else torch divides by zero
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, fit.lr, total_steps=steps, pct_start=warmup
        )
        self.epoch, self.history, self.best = 0, [], None

    @property
    def kept(self) -> dict | None:
        """The scored epoch with the largest mIoU, the first of equal ones; None if none is."""
        scored = [entry for entry in self.history if entry["miou"] is not None]
        return max(scored, key=lambda entry: entry["miou"], default=None)

    @property
    def is_scored(self) -> bool:
        """Whether the last epoch needs no scoring any more."""
        last, fit = self.history[-1] if self.history else None, self.config.fit
        due = self.epoch % fit.eval_every == 0 or self.epoch == fit.epochs
        return last is None or not due or last["miou"] is not None

    def train_epoch(self, bar: Bar) -> None:
        """One pass over the samples, each by the view with the epoch's number.

        Raises: DataError; TrainingError at a non-finite loss.
        """
        seed, losses = self.config.train.seed, []
        torch.manual_seed(seed + self.epoch)  # dropout: a fit that goes on draws what it would have
        batches = plan_epoch(
            len(self.samples), batch_size=self.config.fit.batch_size, seed=seed, epoch=self.epoch
        )
        self.model.train()
        for images, labels in make_batches(self.config, self.samples, batches, view=self.epoch):
            losses.append(self._step(images.to(self.device), labels.to(self.device)))
            bar.advance(len(images))
        self.epoch += 1
        mean = sum(losses) / len(losses)
        self.history.append({"epoch": self.epoch, "loss": mean, "miou": None})

    def _step(self, image_NHWC: Tensor, label_NHW: Tensor) -> float:
        with torch.autocast(**self.autocast):
            answer = ask_heads(self.model, normalize_images(image_NHWC))
        loss = compute_loss(answer, label_NHW.long(), weights_K=self.weights_K)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"fit epoch {self.epoch + 1}: loss is {loss.item()}, expected a finite number; "
                "lower fit.lr"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            decay = warm_decay(self.config.fit.ema, self.schedule.last_epoch)
            update_average(self.average, self.model, decay=decay)
        return loss.item()

    def score_epoch(self) -> None:
        """The last epoch's mIoU on val; its weights are kept if it is the best so far."""
        model = self.model if self.average is None else self.average
        with torch.autocast(**self.autocast):
            self.history[-1]["miou"] = score(model, self.config, device=self.device)
        if self.kept is self.history[-1]:
            self.best = {name: value.cpu().clone() for name, value in model.state_dict().items()}

    def to_state(self) -> dict:
        """Everything that `restore` needs, as plain values and tensors."""
        return {
            "epoch": self.epoch,
            "history": self.history,
            "best": self.best,
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def restore(self, state: dict) -> None:
        """Go on from a state of the same settings. Raises FieldError, RuntimeError."""
        self.epoch, self.history, self.best = state["epoch"], state["history"], state["best"]
        if self.average is not None:
            self.average.load_state_dict(state["average"] or {})
        self.model.load_state_dict(state["best"] or state["model"])  # only to see that it fits
        self.model.load_state_dict(state["model"])
        restore_optimizer(self.optimizer, state["optimizer"])
        restore_scheduler(self.schedule, state["schedule"])


def choose_arithmetic(config: Config, device: torch.device) -> dict:
    """`dtype` and `enabled` of torch.autocast: by `fit.precision`, if auto bfloat16 on GPUs."""
    precision = config.fit.precision
    if precision == "auto":
        bfloat16 = device.type == "cuda" and supports_bfloat16(device)
        return {"dtype": torch.bfloat16, "enabled": bfloat16}
    return {"dtype": torch.bfloat16, "enabled": precision == "bfloat16"}


def ask_heads(model: nn.Module, image_NCHW: Tensor) -> dict[str, Tensor]:
    """Scores float32 [N, K, H, W] of both heads, "out" and "aux", at the size of the images.

    Unlike torchvision's forward it upsamples in float32 under autocast, too.
    """
    hw, features = image_NCHW.shape[-2:], model.backbone(image_NCHW)
    heads = {"out": model.classifier, "aux": model.aux_classifier}
    return {name: resize_to(head(features[name]).float(), hw) for name, head in heads.items()}


def compute_loss(answer: dict[str, Tensor], label_NHW: Tensor, *, weights_K: Tensor | None):
    """Cross-entropy of both heads, the mean over valid pixels, by weight if classes have weights.

    Args:
        answer: "out" and "aux", scores float32 [N, K, H, W]. label_NHW: int64, VOID does not count.

    Returns: scalar float32.
    """
    valid = label_NHW[label_NHW != VOID]
    total = valid.numel() if weights_K is None else weights_K[valid].sum()
    heads = {"out": 1.0, "aux": AUX_WEIGHT}
    losses = (
        share
        * F.cross_entropy(answer[head], label_NHW, weights_K, ignore_index=VOID, reduction="sum")
        for head, share in heads.items()
    )
    return sum(losses) / max(total, 1)


def warm_decay(decay: float, step: int) -> float:
    """The decay at a step, from 1: little at first, so that early weights are soon forgotten.

    >>> warm_decay(0.99, 1), warm_decay(0.99, 10_000)
    (0.18181818181818182, 0.99)
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, *, decay: float) -> None:
    """average = decay * average + (1 - decay) * model, for weights and BatchNorm's statistics."""
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


@torch.inference_mode()
def score(model: nn.Module, config: Config, *, device: torch.device) -> float:
    """mIoU (0 to 1) of a teacher on val, seen as phase one shows it."""
    model.eval()
    num_classes = config.dataset.num_classes
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for sample in find_samples(config.dataset, config.dataset.val_split):
        image, label, _ = fit_inside(
            *read_sample(config.dataset, sample), size_hw=config.dataset.val_hw
        )
        x = normalize_images(torch.from_numpy(image)[None].to(device))
        logits = resize_to(model.classifier(model.backbone(x)["out"]).float(), label.shape)
        confusion += count_confusion(
            logits.argmax(1).cpu(), torch.from_numpy(label)[None], num_classes=num_classes
        )
    return compute_miou(confusion)
