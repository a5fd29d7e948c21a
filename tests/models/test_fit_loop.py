"""How a teacher is fitted: on which views, by which loss, and what of it is kept."""

import copy

import numpy as np
import pytest
import torch

from kdcache.config import VOID
from kdcache.config.parser import make_config, merge
from kdcache.data.pictures import read_sample
from kdcache.data.voc import find_samples
from kdcache.errors import SettingsError, TrainingError
from kdcache.models import fit_batches, teacher
from kdcache.models.fit import fit_teacher
from kdcache.models.fit_batches import (
    make_batches,
    make_view,
    plan_epoch,
    weigh_by_frequency,
    weigh_classes,
)
from kdcache.models.fit_loop import Fitting, compute_loss, update_average, warm_decay
from kdcache.models.networks import wrap_torchvision
from kdcache.precompute.group import draw_view
from kdcache.progress import Silent
from tests.support.waits import Waits


@pytest.fixture
def fitting(given, tmp_path):
    out = str(tmp_path / "mine.pth")
    return merge(
        given, {"fit": {"epochs": 3, "batch_size": 4, "out": out}, "teacher": {"weights": out}}
    )


def begin(given) -> Fitting:
    """A fit from scratch, before its first epoch."""
    config = make_config(given)
    torch.manual_seed(0)
    samples = find_samples(config.dataset, "train")
    model = teacher.build_fcn("fcn_resnet50", num_classes=8, aux_head=True)
    network = wrap_torchvision(model, num_classes=8)
    return Fitting(network, config, samples, device=torch.device("cpu"))


def train_epoch(fit: Fitting) -> None:
    with Silent().start("", total=None, unit="") as bar:
        fit.train_epoch(bar)


def script_scores(monkeypatch, *mious: float) -> None:
    """Let epoch after epoch score these."""
    scores = iter(mious)
    monkeypatch.setattr("kdcache.models.fit_loop.score", lambda *args, **kwargs: next(scores))


# --- views


@pytest.mark.parametrize("view", [0, 1, 7])
def test_what_is_fitted_is_what_phase_one_draws(config, view):
    for sample in find_samples(config.dataset, "train")[:3]:
        image, label = make_view(config, sample, view)
        expected_image, expected_label, _ = draw_view(config, sample, split="train", view=view)
        assert np.array_equal(image, expected_image) and np.array_equal(label, expected_label)


def test_each_epoch_shows_every_sample_once_by_its_own_view(fitting, monkeypatch):
    shown, real = [], fit_batches.make_view

    def note(config, sample, view):
        shown.append((view, sample.id))
        return real(config, sample, view)

    monkeypatch.setattr(fit_batches, "make_view", note)
    fit_teacher(make_config(fitting))
    ids = [sample.id for sample in find_samples(make_config(fitting).dataset, "train")]
    assert sorted(shown) == sorted((view, id) for view in range(3) for id in ids)


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "sizes"),
    [(46, 8, {7, 8}), (9, 8, {4, 5}), (8, 8, {8}), (3, 2, {1, 2}), (1, 8, {1}), (5, 100, {5})],
)
def test_batches_hold_every_sample_once_and_are_of_about_one_size(num_samples, batch_size, sizes):
    batches = plan_epoch(num_samples, batch_size=batch_size, seed=0, epoch=3)
    assert sorted(np.concatenate(batches)) == list(range(num_samples))
    assert {len(batch) for batch in batches} == sizes


def test_the_order_is_that_of_seed_and_epoch():
    def order(seed, epoch):
        return np.concatenate(plan_epoch(20, batch_size=8, seed=seed, epoch=epoch)).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2) and order(0, 1) != order(1, 1)


def test_few_labels_and_a_last_batch_of_one_sample_are_fitted(fitting):
    fit = begin(merge(fitting, {"fit": {"batch_size": 2, "epochs": 1}}))
    fit.samples = fit.samples[:3]
    train_epoch(fit)
    fit.score_epoch()
    assert fit.history[0]["loss"] > 0 and fit.best is not None


@pytest.mark.parametrize(
    ("weights_K", "waits_for"), [(None, []), (torch.ones(8), ["nonzero"])], ids=["plain", "weights"]
)
def test_a_step_waits_once_for_its_loss_and_once_for_weights(fitting, weights_K, waits_for):
    fit = begin(merge(fitting, {"fit": {"ema": 0.9}}))
    fit.weights_K = weights_K
    images, labels = next(iter(make_batches(fit.config, fit.samples, [[0, 1]], view=0)))
    fit.model.train()
    fit._step(images, labels)  # makes the optimiser's state
    with Waits() as waits:
        fit._step(images, labels)
    assert waits.seen == [*waits_for, "_local_scalar_dense"]


# --- what is kept


def test_the_best_epoch_is_kept(fitting, monkeypatch):
    script_scores(monkeypatch, 0.2, 0.5, 0.4)
    said = []
    fitted = fit_teacher(make_config(fitting), say=said.append)
    assert "val mIoU 0.5000 (best)" in said[2] and "val mIoU 0.4000" in said[3]
    assert "left" in said[2] and "left" not in said[3] and "best" not in said[3]
    assert str(fitted).endswith("mine.pth: teacher written, epoch 2 of 3 kept, mIoU on val 0.5000")
    two = torch.load(make_config(fitting).fit.out, weights_only=True)
    assert two["epoch"] == 2 and two["miou"] == 0.5 and len(two["history"]) == 3


def test_of_equal_epochs_the_first_is_kept_with_its_weights(fitting, monkeypatch):
    script_scores(monkeypatch, 0.5, 0.5)
    fit = begin(fitting)
    train_epoch(fit)
    fit.score_epoch()
    first = copy.deepcopy(fit.model.state_dict())
    train_epoch(fit)
    fit.score_epoch()
    assert fit.kept["epoch"] == 1
    assert all(torch.equal(fit.best[name], value) for name, value in first.items())
    assert not torch.equal(fit.best["classifier.0.weight"], fit.model.classifier[0].weight)


def test_val_is_scored_as_often_as_asked_and_at_the_end(fitting, monkeypatch):
    script_scores(monkeypatch, 0.3, 0.2)
    given = merge(fitting, {"fit": {"eval_every": 2}})
    assert fit_teacher(make_config(given)).miou == 0.3
    stored = torch.load(make_config(given).fit.out, weights_only=True)
    assert [entry["miou"] for entry in stored["history"]] == [None, 0.3, 0.2]


# --- rates, and when it ends


def test_the_backbone_has_a_rate_of_its_own(fitting):
    fit = begin(merge(fitting, {"fit": {"lr": 1e-2, "backbone_lr": 1e-4, "warmup": 0.5}}))
    sizes = [sum(x.numel() for x in group["params"]) for group in fit.optimizer.param_groups]
    backbone = sum(x.numel() for x in fit.model.backbone.parameters())
    assert sizes == [sum(x.numel() for x in fit.model.parameters()) - backbone, backbone]
    rates = []
    for _ in range(9):
        fit.optimizer.step()
        fit.schedule.step()
        rates.append(fit.schedule.get_last_lr())
    head, own = zip(*rates, strict=True)
    assert max(head) == pytest.approx(1e-2, rel=0.1) and max(own) == pytest.approx(1e-4, rel=0.1)
    assert head.index(max(head)) in (3, 4)  # half of the steps


def test_all_weights_have_one_rate_unless_asked(fitting):
    fit = begin(fitting)
    assert len(fit.optimizer.param_groups) == 1 and fit.schedule.get_last_lr()[0] < 1e-3


@pytest.mark.parametrize(
    ("mious", "ends"),
    [((0.3, 0.2, 0.1, 0.5), 3), ((0.3, 0.2, 0.4, 0.5), 4), ((0.1, 0.2, 0.2, 0.2), 4)],
)
def test_it_ends_once_val_is_no_better_for_long_enough(fitting, monkeypatch, mious, ends):
    script_scores(monkeypatch, *mious)
    said = []
    given = merge(fitting, {"fit": {"epochs": 4, "patience": 2}})
    fitted = fit_teacher(make_config(given), say=said.append)
    assert fitted.miou == max(mious[:ends]) and fitted.epochs == ends
    assert "left" not in said[-1] and ("stopped" in said[-1]) == (ends < 4)


# --- averaged weights


def test_averaged_weights_are_kept_if_asked(fitting):
    fit = begin(merge(fitting, {"fit": {"ema": 0.9, "batch_size": 10}}))
    before = copy.deepcopy(fit.model.state_dict())
    train_epoch(fit)  # one step
    fit.score_epoch()
    after, share = fit.model.state_dict(), warm_decay(0.9, 1)
    for name in ("classifier.0.weight", "backbone.bn1.running_mean"):
        expected = share * before[name] + (1 - share) * after[name]
        torch.testing.assert_close(fit.best[name], expected)
        assert not torch.equal(fit.best[name], after[name])


def test_an_average_forgets_its_beginning_at_first():
    assert warm_decay(0.99, 1) == pytest.approx(2 / 11)
    assert [warm_decay(0.99, step) for step in (891, 10**6)] == [0.99, 0.99]


def test_an_average_of_what_does_not_change_is_that():
    model = torch.nn.BatchNorm1d(2)
    average = copy.deepcopy(model)
    model.num_batches_tracked += 5
    update_average(average, model, decay=0.7)
    assert average.num_batches_tracked == 5 and torch.equal(average.weight, model.weight)


# --- the loss


def test_weights_are_roots_of_inverse_frequencies_with_mean_one(config):
    samples = find_samples(config.dataset, "train")
    asked = make_config({**config_dict(config), "fit": {"class_weights": "sqrt_inverse"}})
    labels = np.concatenate([read_sample(config.dataset, s)[1].ravel() for s in samples])
    counts = np.array([(labels == k).sum() for k in range(8)])
    weights = weigh_classes(asked, samples).numpy()
    there = counts > 0
    assert weights[there].mean() == pytest.approx(1, abs=1e-6)
    products = weights[there] ** 2 * counts[there]
    assert products == pytest.approx(products[0], rel=1e-4)
    assert weigh_classes(config, samples) is None


def config_dict(config) -> dict:
    return {"dataset": {"root": str(config.dataset.root), "num_classes": 8, "class_names": None}}


def test_a_class_without_labels_weighs_one():
    assert weigh_by_frequency(np.array([400, 0, 100])).tolist() == pytest.approx([2 / 3, 1, 4 / 3])


def test_the_loss_is_the_weighted_mean_over_valid_pixels():
    torch.manual_seed(0)
    scores = {head: torch.randn(2, 3, 4, 4) for head in ("out", "aux")}
    label = torch.randint(0, 3, (2, 4, 4))
    label[0, :2] = VOID
    for weights in (None, torch.tensor([0.5, 1.0, 1.5])):
        expected = sum(
            share
            * torch.nn.functional.cross_entropy(
                scores[head], label, weights, ignore_index=VOID, reduction="mean"
            )
            for head, share in (("out", 1.0), ("aux", 0.4))
        )
        torch.testing.assert_close(compute_loss(scores, label, weights_K=weights), expected)


def test_a_batch_without_a_label_costs_nothing():
    scores = {head: torch.randn(1, 3, 2, 2) for head in ("out", "aux")}
    void = torch.full((1, 2, 2), VOID)
    for weights in (None, torch.ones(3)):
        assert compute_loss(scores, void, weights_K=weights) == 0


@pytest.mark.parametrize("epochs", [1, 2, 3, 9, 20])
def test_any_number_of_steps_ends_at_a_small_rate(fitting, epochs):
    fit = begin(merge(fitting, {"fit": {"batch_size": 10, "epochs": epochs}}))
    rates = []
    for _ in range(epochs):
        fit.optimizer.step()
        fit.schedule.step()
        rates += fit.schedule.get_last_lr()
    assert max(rates) <= 1e-3 and (epochs < 3 or rates[-1] < 1e-6)


def test_a_rate_that_is_too_high_is_one_line(fitting):
    with pytest.raises(TrainingError, match=r"fit epoch \d: loss is (nan|inf), expected a finite"):
        fit_teacher(make_config(merge(fitting, {"fit": {"lr": 1e30}})))


def test_bfloat16_fits_too(fitting):
    given = merge(fitting, {"fit": {"precision": "bfloat16", "epochs": 1}})
    exact = merge(fitting, {"fit": {"epochs": 1}})
    losses = []
    for settings in (given, exact):
        fit = begin(settings)
        train_epoch(fit)
        losses.append(fit.history[0]["loss"])
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("ema", 0), ("ema", 1), ("ema", float("nan")), ("eval_every", 0), ("patience", 0)),
        *(("backbone_lr", 0), ("warmup", 1.1), ("warmup", float("nan"))),
    ],
)
def test_settings_out_of_range_are_refused(fitting, name, value):
    with pytest.raises(SettingsError, match=f"fit.{name}"):
        make_config(merge(fitting, {"fit": {name: value}}))
