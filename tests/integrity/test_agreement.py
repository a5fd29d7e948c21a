"""The teacher's answers are about the samples, views and classes they are stored for.

Looked at are random runs of neighbouring samples, up to 256 stored samples a split.
"""

import pytest

from tests.integrity.agreement import (
    find_answers_of_other_views,
    find_answers_of_others,
    find_displaced_labels,
    find_exchanged_answers,
    find_exchanged_classes,
)
from tests.integrity.opened import tell
from tests.integrity.scenes import Scenes, read_scenes


@pytest.fixture(scope="module")
def scenes(opened, split) -> Scenes:
    return read_scenes(opened, split)


def test_answers_fit_their_own_labels_far_better_than_those_of_other_samples(scenes):
    assert not (found := find_answers_of_others(scenes)), tell(found)


def test_no_two_samples_have_each_others_answers(scenes):
    assert not (found := find_exchanged_answers(scenes)), tell(found)


def test_no_view_has_the_answers_of_another(scenes):
    assert not (found := find_answers_of_other_views(scenes)), tell(found)


def test_classes_have_the_same_order_in_answers_and_labels(scenes, opened):
    assert not (found := find_exchanged_classes(scenes, num_classes=opened.num_classes)), tell(
        found
    )


def test_labels_lie_as_the_answers_do(scenes):
    """Neither mirrored nor moved by a cell of the logits."""
    assert not (found := find_displaced_labels(scenes)), tell(found)
