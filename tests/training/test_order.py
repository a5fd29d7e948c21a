"""The order of an epoch with labelled and unlabelled samples."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest

from kdcache.training.order import count_mixed_steps, plan_mixed_epoch


def plan(**changes: int | str) -> list[list[tuple[int, int]]]:
    sizes = {"num_labelled": 5, "num_unlabelled": 18, "unlabelled_rows": 3, "num_views": 3}
    return plan_mixed_epoch(**{**sizes, "batch_size": 4, "seed": 0, "epoch": 0, **changes})


def plan_epochs(count: int, **changes: int | str) -> list[tuple[int, int]]:
    return [place for epoch in range(count) for batch in plan(epoch=epoch, **changes)
            for place in batch]  # fmt: skip


@pytest.mark.parametrize("rows", range(5))
def test_every_batch_is_full_and_has_its_unlabelled_rows(rows):
    batches = plan(unlabelled_rows=rows)
    assert len(batches) == count_mixed_steps(5, 18, batch_size=4) == 6
    for batch in batches:
        assert len(batch) == 4 and sum(sample >= 5 for _, sample in batch) == rows


def test_rows_of_both_kinds_are_spread_over_the_batch():
    kinds = [[sample >= 4 for _, sample in batch]
             for batch in plan(num_labelled=4, batch_size=8, unlabelled_rows=6)]  # fmt: skip
    assert all(sum(batch[:4]) == sum(batch[4:]) == 3 for batch in kinds)


@pytest.mark.parametrize(("kind", "num"), [("labelled", 5), ("unlabelled", 18)])
@pytest.mark.parametrize("views", ["cycle", "random"])
def test_each_pass_has_every_sample_once_across_epochs(kind, num, views):
    chosen = [sample for _, sample in plan_epochs(8, views=views)
              if (sample >= 5) == (kind == "unlabelled")]  # fmt: skip
    passes = [chosen[start : start + num] for start in range(0, len(chosen) - num + 1, num)]
    assert len(passes) >= 2
    assert all(len(set(one)) == num for one in passes)
    assert passes[0] != passes[1]


def test_a_sample_shows_its_views_in_turn():
    seen = [view for view, sample in plan_epochs(9) if sample == 2]
    assert len(seen) >= 3
    assert seen[3:] == seen[:-3] and set(seen[:3]) == {0, 1, 2}


def test_views_can_be_drawn_anew():
    seen = Counter(view for view, sample in plan_epochs(60, views="random") if sample == 2)
    assert set(seen) == {0, 1, 2}
    assert plan(views="random") == plan(views="random") != plan(views="cycle")


def test_another_seed_or_epoch_has_another_order():
    plans = [plan(), plan(seed=1), plan(epoch=1), plan(seed=1, epoch=1)]
    assert all(a != b for index, a in enumerate(plans) for b in plans[:index])


def test_labels_only_draws_no_unlabelled_sample_in_as_many_steps():
    batches = plan(unlabelled_rows=0)
    assert len(batches) == len(plan())
    assert {sample for _, sample in chain(*batches)} == set(range(5))
