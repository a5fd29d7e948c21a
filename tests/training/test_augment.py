"""Flips and crops in training: drawn by (seed, epoch, id) alone, targets moved with the images,
nothing touched where off.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.analysis import students
from kdcache.config.parser import make_config, merge
from kdcache.errors import SettingsError, TrainingError
from kdcache.precompute import build
from kdcache.precompute.build import build_cache
from kdcache.progress import Silent
from kdcache.seals import seal_json
from kdcache.training import learner as learning
from kdcache.training import loop, run
from kdcache.training.batches import Augmentation, Batch, Move, make_augmentation
from kdcache.training.distill import distill
from kdcache.training.run_identity import hyperparameters
from tests.bench import equivariance
from tests.support import quick
from tests.support.events import StopAfter
from tests.support.helpers import check_one_line

VIEW_HW, CROP_HW = (64, 96), (32, 48)
STRIDES = {"logits": 8, "low": 4, "mid": 8, "high": 16}
IDS = [f"2007_{n:06d}" for n in range(400)]


def make(flip: float = 0.5, crop_hw: tuple[int, int] = CROP_HW, seed: int = 0) -> Augmentation:
    return Augmentation(seed=seed, flip=flip, view_hw=VIEW_HW, crop_hw=crop_hw)


def draw_all(augmentation: Augmentation, epoch: int) -> list[Move]:
    return [augmentation.draw(sample_id, epoch=epoch) for sample_id in IDS]


def coordinates(stride: int) -> torch.Tensor:
    """[2, H, W]: each cell's own row and column."""
    rows, columns = (torch.arange(px // stride) for px in VIEW_HW)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))


def make_batch(num: int = 24) -> Batch:
    """Every position holds its row and column, in each dtype that is stored; scales of int8 hold
    numbers of their own.
    """
    pixels = coordinates(1).to(torch.uint8)
    image_HWC = torch.cat([pixels, pixels[:1] ^ pixels[1:]]).permute(1, 2, 0)
    arrays = {
        "image": image_HWC.expand(num, -1, -1, -1),
        "label": (pixels[0] ^ pixels[1]).expand(num, -1, -1),
    }
    dtypes = {"logits": torch.float16, "low": torch.float16, "mid": torch.int8, "high": torch.int8}
    arrays |= {
        name: coordinates(stride).to(dtypes[name]).expand(num, -1, -1, -1)
        for name, stride in STRIDES.items()
    }
    arrays["mid_scale"] = torch.arange(2.0 * num).view(num, 2)
    return Batch({name: values.contiguous() for name, values in arrays.items()}, IDS[:num])


# --- draws


def test_draws_are_a_pure_function_of_seed_epoch_and_id():
    first = draw_all(make(), 3)
    for hidden in (random.seed, np.random.seed, torch.manual_seed):
        hidden(99)
    before = random.random(), np.random.random(), torch.rand(1).item()
    for hidden in (random.seed, np.random.seed, torch.manual_seed):
        hidden(99)
    assert [make().draw(sample_id, epoch=3) for sample_id in reversed(IDS)] == first[::-1]
    assert (random.random(), np.random.random(), torch.rand(1).item()) == before


def test_draws_are_pinned():
    """Resumed and repeated runs see the moves of the first, on any machine and any NumPy."""
    drawn = [make(seed=1).draw(sample_id, epoch=2) for sample_id in ("a", "b", "2007/x é")]
    assert drawn == [Move(0, 16, False), Move(0, 32, False), Move(32, 32, True)]


def test_epochs_and_seeds_differ():
    drawn = [
        tuple(draw_all(make(seed=seed), epoch)) for seed in (0, 1, 2**63 - 1) for epoch in (1, 2, 3)
    ]
    assert len(set(drawn)) == 9


def test_every_place_is_drawn_and_flips_come_as_often_as_asked():
    moves = draw_all(make(flip=0.25), 1)
    assert {(move.top, move.left) for move in moves} == {
        (t, x) for t in (0, 16, 32) for x in (0, 16, 32, 48)
    }
    assert 60 < sum(move.flip for move in moves) < 140
    assert all(move.flip for move in draw_all(make(flip=1.0), 1)) and not any(
        m.flip for m in draw_all(make(flip=0.0), 1)
    )


def test_what_is_drawn_for_a_flip_does_not_move_the_crop():
    assert [(m.top, m.left) for m in draw_all(make(flip=0.0), 1)] == [
        (m.top, m.left) for m in draw_all(make(), 1)
    ]


# --- moves


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("crop_hw", [CROP_HW, VIEW_HW, (16, 16), (64, 16)])
def test_image_label_and_answers_stay_aligned(flip: float, crop_hw: tuple[int, int]):
    augmentation, batch = make(flip, crop_hw), make_batch()
    moved = augmentation.apply(batch, epoch=1)
    assert moved.sample_ids == batch.sample_ids and moved.arrays.keys() == batch.arrays.keys()
    for row, sample_id in enumerate(moved.sample_ids):
        move, arrays = (
            augmentation.draw(sample_id, epoch=1),
            {name: v[row] for name, v in moved.arrays.items()},
        )
        rows, columns = torch.arange(crop_hw[0]) + move.top, torch.arange(crop_hw[1]) + move.left
        columns = columns.flip(0) if move.flip else columns
        image = arrays["image"].long()
        assert torch.equal(image[..., 0], rows[:, None].expand(crop_hw))
        assert torch.equal(image[..., 1], columns[None].expand(crop_hw))
        assert torch.equal(arrays["label"], arrays["image"][..., 2])
        for name, stride in STRIDES.items():
            spread = arrays[name].long().repeat_interleave(stride, 1).repeat_interleave(stride, 2)
            assert torch.equal(
                spread, image[..., :2].permute(2, 0, 1) // stride
            )  # each pixel lies in the cell it lay in


def test_scales_are_not_moved_and_dtypes_stay():
    batch = make_batch()
    moved = make(1.0).apply(batch, epoch=1)
    assert moved.arrays["mid_scale"] is batch.arrays["mid_scale"]
    assert all(values.dtype == batch.arrays[name].dtype for name, values in moved.arrays.items())


def test_a_batch_is_left_as_it_was_and_what_is_made_of_it_is_not_its_memory():
    """Resident samples and slots are used again."""
    batch = make_batch(4)
    before = {name: values.clone() for name, values in batch.arrays.items()}
    moved = make(0.5, VIEW_HW).apply(batch, epoch=1)
    for name, values in batch.arrays.items():
        assert torch.equal(values, before[name])
        if name != "mid_scale":
            assert (
                moved.arrays[name].data_ptr() != values.data_ptr()
                and moved.arrays[name].is_contiguous()
            )


def test_two_flips_are_none():
    batch = make_batch(3)
    again = make(1.0, VIEW_HW).apply(make(1.0, VIEW_HW).apply(batch, epoch=1), epoch=1)
    assert all(torch.equal(values, batch.arrays[name]) for name, values in again.arrays.items())


# --- settings


def test_off_by_default_and_where_nothing_is_asked_for():
    assert make_augmentation(make_config({})) is None
    assert make_augmentation(make_config({"train": {"crop": 512}})) is None
    asked = make_augmentation(make_config({"train": {"crop": [64, 512], "flip": 0.5, "seed": 7}}))
    assert asked == Augmentation(seed=7, flip=0.5, view_hw=(512, 512), crop_hw=(64, 512))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"flip": 1.5}, "train.flip is 1.5, expected 0 to 1"),
        ({"flip": float("nan")}, "train.flip is nan, expected 0 to 1"),
        ({"crop": 100}, "train.crop is 100, expected multiples of 16"),
        ({"crop": 0}, "train.crop is 0, expected multiples of 16"),
        ({"crop": [32]}, "train.crop is [32], expected one number or [height, width]"),
    ],
)
def test_settings_that_mean_nothing_are_one_line(change: dict, words: str):
    with pytest.raises(SettingsError) as error:
        make_config({"train": change})
    check_one_line(error, f"settings: {words}", "; change train.")


def test_each_setting_is_part_of_a_run():
    names = {"views": "random", "flip": 0.5, "crop": 32}
    runs = [
        hyperparameters(make_config({"train": {"device": "cpu", k: v}})) for k, v in names.items()
    ]
    assert [run[f"train.{name}"] for run, name in zip(runs, names, strict=True)] == [
        "random",
        0.5,
        [32, 32],
    ]


def test_a_crop_of_all_of_a_view_is_no_crop():
    sizes = [
        {"train": {"device": "cpu", "crop": crop}, "dataset": {"size": 64}}
        for crop in (None, 64, [64, 64])
    ]
    first, *others = (hyperparameters(make_config(given)) for given in sizes)
    assert others == [first, first]


# --- runs


@pytest.fixture(scope="module")
def quick_root(tmp_path_factory) -> Path:
    """A cache of 3 samples in 2 views of 32x32, logits int8, low int8, mid lowrank, high float16.
    Read only.
    """
    data = quick.write_quick_data(tmp_path_factory.mktemp("data"))
    root = tmp_path_factory.mktemp("quick") / "cache"
    kinds = {"logits": "int8", "low": "int8", "mid": "lowrank", "high": "float16"}
    cache = {"cache": {"encoding": kinds, "rank": {"mid": 4}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_teacher", quick.make_quick_teacher)
        build_cache(make_config(merge(quick.quick_given(data, root), cache)))
    return root


def train(
    root: Path,
    folder: Path,
    *,
    epochs: int = 2,
    baseline: bool = False,
    resume: bool = False,
    events=None,
    **train,
):
    given = {"student": {"pretrained": False, "aspp_channels": 16},
             "train": {"epochs": epochs, "batch_size": 2, "device": "cpu", **train},
             "run": {"dir": str(folder), "baseline": baseline, "resume": resume}}  # fmt: skip
    return distill(given, root=root, events=events)


def read_losses(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith("_s")} for line in lines]


@pytest.fixture
def seen(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """Arrays of every batch that a loss was computed of."""
    batches, compute = [], loop.compute_loss

    def spy(loss, logits, features, batch, targets):
        batches.append({name: values.clone() for name, values in batch.arrays.items()})
        return compute(loss, logits, features, batch, targets)

    monkeypatch.setattr(loop, "compute_loss", spy)
    return batches


def test_off_is_what_it_was_bit_for_bit(quick_root, tmp_path):
    """A crop as large as the views is none; the reader's own batches are trained on."""
    train(quick_root, tmp_path / "plain")
    train(quick_root, tmp_path / "whole", crop=32, flip=0.0)
    assert read_losses(tmp_path / "plain") == read_losses(tmp_path / "whole")
    batch, got = Batch({}, ["a"]), []
    learner = learning.build_learner(
        make_config({"student": {"pretrained": False}, "train": {"device": "cpu"}}),
        teacher_channels=quick.CHANNELS,
    )
    reader = type("Reader", (), {"read": lambda self, batches: iter([batch])})()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop,
            "train_step",
            lambda learner, batch, where: got.append(batch) or loop.LossTerms(*[None] * 4),
        )
        with Silent().start("", total=1, unit="") as bar:
            loop.train_epoch(learner, reader, [[]], epoch=1, bar=bar)
    assert got[0] is batch


def test_the_student_is_trained_on_crops_and_validated_on_whole_images(quick_root, tmp_path, seen):
    result = train(quick_root, tmp_path / "run", epochs=3, flip=0.5, crop=[16, 32]).student
    shapes = [{name: tuple(values.shape[1:]) for name, values in batch.items()} for batch in seen]
    assert (
        shapes
        == [
            {
                "image": (16, 32, 3),
                "label": (16, 32),
                "logits": (8, 2, 4),
                "logits_scale": (8,),
                "low": (4, 4, 8),
                "low_scale": (4,),
                "mid": (4, 2, 4),
                "high": (8, 1, 2),
            }
        ]
        * 3
    )
    assert (
        result["hyperparameters"]["train.crop"] == [16, 32]
        and result["hyperparameters"]["train.flip"] == 0.5
    )
    assert not torch.equal(seen[0]["image"].sort(0).values, seen[2]["image"].sort(0).values)


def test_baseline_sees_the_same_moves(quick_root, tmp_path, seen):
    train(quick_root, tmp_path / "run", baseline=True, flip=0.5, crop=16, views="random")
    assert len(seen) == 4
    for name in ("image", "label"):
        assert [batch[name].tolist() for batch in seen[:2]] == [
            batch[name].tolist() for batch in seen[2:]
        ]


def test_another_augmentation_is_another_baseline(quick_root, tmp_path):
    for number, change in enumerate([{}, {"flip": 0.5}, {"crop": 16}, {"views": "random"}]):
        train(quick_root, tmp_path / f"run{number}", epochs=1, baseline=True, **change)
        assert len(list(tmp_path.glob("baseline-*"))) == number + 1


def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(quick_root, tmp_path):
    changes = {"epochs": 3, "flip": 0.5, "crop": 16, "views": "random"}

    train(quick_root, tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        train(quick_root, tmp_path / "halves", events=StopAfter(2), **changes)
    with pytest.raises(
        TrainingError, match="train.flip is 0.5, expected 0.25; resume with the settings"
    ):
        train(quick_root, tmp_path / "halves", resume=True, **{**changes, "flip": 0.25})
    train(quick_root, tmp_path / "halves", resume=True, **changes)
    assert read_losses(tmp_path / "whole") == read_losses(tmp_path / "halves")


def test_a_run_from_before_these_settings_is_one_without(quick_root, tmp_path):
    train(quick_root, tmp_path / "run", epochs=1)
    path = tmp_path / "run" / "result.json"
    result = json.loads(path.read_text())
    for name in ("views", "flip", "crop"):
        del result["hyperparameters"][f"train.{name}"]
    path.write_bytes(seal_json({k: v for k, v in result.items() if k != "sha256"}))
    train(quick_root, tmp_path / "run", epochs=1, resume=True)
    with pytest.raises(TrainingError, match="train.views is 'cycle', expected 'random'"):
        train(quick_root, tmp_path / "run", epochs=1, resume=True, views="random")


@pytest.mark.parametrize("crop", [48, [32, 48], [48, 16]])
def test_a_crop_larger_than_the_views_is_refused_when_the_cache_is_opened(
    quick_root, tmp_path, crop
):
    with pytest.raises(SettingsError) as error:
        train(quick_root, tmp_path / "run", crop=crop)
    found = crop if isinstance(crop, list) else [crop, crop]
    check_one_line(
        error,
        f"{quick_root}: train.crop is {found}, expected at most [32, 32]",
        "set a smaller train.crop",
    )
    assert not (tmp_path / "run").exists()


def test_compiling_is_tried_at_the_size_of_the_crop(quick_root, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(run, "choose_compiling", lambda setting, device: (True, "compile: on"))
    monkeypatch.setattr(run, "compile_learner", lambda learner, trials: tried.extend(trials))
    train(quick_root, tmp_path / "run", epochs=1, crop=16)
    train(quick_root, tmp_path / "whole", epochs=1)
    assert [tuple(batch.arrays["image"].shape) for batch in tried] == [
        (3, 16, 16, 3),  # a last batch of one sample joins the batch before it
        (3, 32, 32, 3),
    ]
    assert tuple(tried[0].arrays["low"].shape) == (3, 4, 4, 4) and tuple(
        tried[0].arrays["high"].shape
    ) == (3, 8, 1, 1)


def test_fewer_views_than_cached_are_trained_with_and_no_other_is_read(quick_root, tmp_path):
    root = Path(shutil.copytree(quick_root, tmp_path / "cache"))
    for array in ("image", "label", "logits", "low", "mid", "high"):
        shutil.rmtree(root / "train" / array / "c" / "1")
    results = []
    for views in ("cycle", "random"):
        given = {
            "augment": {"views": 1},
            "student": {"pretrained": False},
            "run": {"dir": str(tmp_path / views)},
            "train": {"epochs": 3, "batch_size": 2, "device": "cpu", "views": views},
        }
        given["run"]["baseline"] = False
        results.append(distill(given, root=root).student)
    assert [result["hyperparameters"]["augment.views"] for result in results] == [1, 1]
    assert read_losses(tmp_path / "cycle") == read_losses(tmp_path / "random")


def test_errors_against_the_teacher_can_be_measured(built_root, teacher_file, monkeypatch, capsys):
    monkeypatch.setattr(equivariance, "BORDER_PX", 8)
    monkeypatch.setattr(students, "STEPS", 2)
    command = [str(built_root), "--teacher.weights", str(teacher_file), "--num-samples", "4"]
    equivariance.main([*command, "--crop", "32"])
    _, _, _, _, same, flipped, whole = (
        line.split(" | ") for line in capsys.readouterr().out.splitlines()
    )
    assert same[1:4] == ["1.0000"] * 3 == whole[1:4] and same[5] == "1.000"
    assert all(0 < float(cosine) < 0.9999 for cosine in flipped[1:4])
    with pytest.raises(SystemExit):
        equivariance.main([*command, "--crop", "48"])
    assert (
        "--crop is (48, 48), expected multiples of 16 above 16 and at most (32, 32)"
        in capsys.readouterr().err
    )
