"""Fitting a teacher to the views that phase one caches: steps, averaged weights, and the best epoch
so far.

N: batch, H, W: size of a view, K: classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.config import VOID, Config
from kdcache.config.names import TORCHVISION
from kdcache.data.pictures import Sample, read_sample
from kdcache.data.views import fit_inside
from kdcache.data.voc import find_samples
from kdcache.errors import TrainingError
from kdcache.machine.devices import supports_bfloat16
from kdcache.metrics import compute_miou, count_confusion
from kdcache.models.backbone import demand_backbone
from kdcache.models.fit_batches import make_batches, plan_epoch, weigh_classes
from kdcache.models.inputs import normalize_images, resize_to
from kdcache.models.networks import Network
from kdcache.models.stored_state import restore_optimizer, restore_scheduler
from kdcache.models.teacher import ask_network
from kdcache.progress import Bar

AUX_WEIGHT = 0.4  # of the auxiliary head's loss, as in PSPNet (Zhao et al. 2017, arXiv:1612.01105)
WEIGHT_DECAY = 1e-4


class Fitting:
    """A teacher that is being fitted.

    Attributes:
        epoch: epochs trained. history: a dict of "epoch", "loss" and "miou" (None if the epoch is
        not scored) for each of them. best: weights of the epoch that scored best, on the host.
    """

    def __init__(
        self, network: Network, config: Config, samples: Sequence[Sample], *, device: torch.device
    ) -> None:
        self.network = network
        self.model = network.module.to(device, memory_format=network.memory_format)
        self.config, self.samples, self.device = config, samples, device
        self.average = copy.deepcopy(network) if config.fit.ema is not None else None
        self.autocast = {"device_type": device.type, **choose_arithmetic(config, device)}
        weights_K = weigh_classes(config, samples)
        self.weights_K = None if weights_K is None else weights_K.to(device)
        fit = config.fit
        groups = group_weights(network, config)
        self.optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=True)
        steps = fit.epochs * -(-len(samples) // fit.batch_size) + 1
        warmup = max(fit.warmup, min(2 / steps, 1))  # one step or more: torch divides by it
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, [group["lr"] for group in groups], total_steps=steps, pct_start=warmup
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

    @property
    def is_over(self) -> bool:
        """Whether no epoch is left, or `fit.patience` scored epochs were no better than one."""
        fit, scored = self.config.fit, [x for x in self.history if x["miou"] is not None]
        since = len(scored) - scored.index(self.kept) - 1 if scored else 0
        return self.epoch == fit.epochs or fit.patience is not None and since >= fit.patience

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
            losses.append(self._step(self._bring(images), self._bring(labels)))
            bar.advance(len(images))
        self.epoch += 1
        mean = sum(losses) / len(losses)
        self.history.append({"epoch": self.epoch, "loss": mean, "miou": None})

    def _bring(self, values: Tensor) -> Tensor:
        """On the device of the fit; a GPU copies from pinned memory without being waited for."""
        pinned = values.pin_memory() if self.device.type == "cuda" else values
        return pinned.to(self.device, non_blocking=True)

    def _step(self, image_NHWC: Tensor, label_NHW: Tensor) -> float:
        with torch.autocast(**self.autocast):
            answer = ask_heads(self.network, _normalize(self.network, image_NHWC, self.config))
        loss = compute_loss(answer, label_NHW.long(), weights_K=self.weights_K)
        value = loss.item()  # the one wait of a step
        if not math.isfinite(value):
            raise TrainingError(
                f"fit epoch {self.epoch + 1}: loss is {value}, expected a finite number; "
                "lower fit.lr"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            decay = warm_decay(self.config.fit.ema, self.schedule.last_epoch)
            update_average(self.average.module, self.model, decay=decay)
        return value

    def score_epoch(self) -> None:
        """The last epoch's mIoU on val; its weights are kept if it is the best so far."""
        network = self.network if self.average is None else self.average
        with torch.autocast(**self.autocast):
            self.history[-1]["miou"] = score(network, self.config, device=self.device)
        if self.kept is self.history[-1]:
            weights = network.module.state_dict()
            self.best = {name: value.cpu().clone() for name, value in weights.items()}

    def to_state(self) -> dict:
        """Everything that `restore` needs, as plain values and tensors."""
        return {
            "epoch": self.epoch,
            "history": self.history,
            "best": self.best,
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def restore(self, state: dict) -> None:
        """Go on from a state of the same settings. Raises FieldError, RuntimeError."""
        self.epoch, self.history, self.best = state["epoch"], state["history"], state["best"]
        if self.average is not None:
            self.average.module.load_state_dict(state["average"] or {})
        self.model.load_state_dict(state["best"] or state["model"])  # only to see that it fits
        self.model.load_state_dict(state["model"])
        restore_optimizer(self.optimizer, state["optimizer"])
        restore_scheduler(self.schedule, state["schedule"])


def group_weights(network: Network, config: Config) -> list[dict]:
    """Groups of weights for the optimiser, "params" and their peak rate "lr": all of them, or with
    `fit.backbone_lr` those of the backbone behind the others.

    Raises: SettingsError for `fit.backbone_lr` if there is no backbone.
    """
    fit = config.fit
    weights = {name: x for name, x in network.module.named_parameters() if x.requires_grad}
    if fit.backbone_lr is None:
        return [{"params": list(weights.values()), "lr": fit.lr}]
    part = demand_backbone(network.module, owner=network.name, field="fit.backbone_lr")
    own = [x for name, x in weights.items() if name.startswith(f"{part}.")]
    rest = [x for name, x in weights.items() if not name.startswith(f"{part}.")]
    groups = [{"params": rest, "lr": fit.lr}, {"params": own, "lr": fit.backbone_lr}]
    return [group for group in groups if group["params"]]


def choose_arithmetic(config: Config, device: torch.device) -> dict:
    """`dtype` and `enabled` of torch.autocast: by `fit.precision`, if auto bfloat16 on GPUs."""
    precision = config.fit.precision
    if precision == "auto":
        bfloat16 = device.type == "cuda" and supports_bfloat16(device)
        return {"dtype": torch.bfloat16, "enabled": bfloat16}
    return {"dtype": torch.bfloat16, "enabled": precision == "bfloat16"}


def ask_heads(network: Network, image_NCHW: Tensor) -> dict[str, Tensor]:
    """Scores float32 [N, K, H, W] at the size of the images: "out", and "aux" of an auxiliary head
    of torchvision.

    Unlike torchvision's forward it upsamples in float32 under autocast, too.

    Raises: TeacherError for what no logits are.
    """
    hw, model = image_NCHW.shape[-2:], network.module
    if network.name in TORCHVISION and getattr(model, "aux_classifier", None) is not None:
        features = model.backbone(image_NCHW)
        heads = {"out": model.classifier, "aux": model.aux_classifier}
        return {name: resize_to(head(features[name]).float(), hw) for name, head in heads.items()}
    return {"out": resize_to(ask_network(network, image_NCHW).float(), hw)}


def _normalize(network: Network, image_NHWC: Tensor, config: Config) -> Tensor:
    """Images as phase one shows them to the network."""
    mean, std = tuple(config.teacher.mean), tuple(config.teacher.std)
    x = normalize_images(image_NHWC, mean=mean, std=std)
    return x.contiguous(memory_format=network.memory_format)


def compute_loss(answer: dict[str, Tensor], label_NHW: Tensor, *, weights_K: Tensor | None):
    """Cross-entropy of the heads, the mean over valid pixels, by weight if classes have weights.

    Args:
        answer: "out" and perhaps "aux", scores float32 [N, K, H, W].
        label_NHW: int64, VOID does not count.

    Returns: scalar float32.
    """
    valid = label_NHW != VOID
    # by weights the selection waits for a GPU, and a masked sum would add up in another order
    total = valid.sum() if weights_K is None else weights_K[label_NHW[valid]].sum()
    heads = {"out": 1.0, "aux": AUX_WEIGHT}
    losses = (
        heads[head]
        * F.cross_entropy(scores, label_NHW, weights_K, ignore_index=VOID, reduction="sum")
        for head, scores in answer.items()
    )
    return sum(losses) / total.clamp(min=1)


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
def score(network: Network, config: Config, *, device: torch.device) -> float:
    """mIoU (0 to 1) of a teacher on val, seen as phase one shows it. Raises TeacherError."""
    network.module.eval()
    num_classes = config.dataset.num_classes
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for sample in find_samples(config.dataset, config.dataset.val_split):
        image, label, _ = fit_inside(
            *read_sample(config.dataset, sample), size_hw=config.dataset.val_hw
        )
        x = _normalize(network, torch.from_numpy(image)[None].to(device), config)
        logits = resize_to(ask_network(network, x).float(), label.shape)
        confusion += count_confusion(
            logits.argmax(1).cpu(), torch.from_numpy(label)[None], num_classes=num_classes
        )
    return compute_miou(confusion)
