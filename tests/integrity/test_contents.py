"""What is stored can be what a data set and a teacher gave, and is what the set gives again."""

import pytest

from tests.integrity.opened import tell
from tests.integrity.replay import find_data_set, find_unlike_replay
from tests.integrity.stored import find_bad_padding, find_nonfinite, find_unknown_labels


def test_labels_are_classes_or_void(opened, split):
    """256 of them, drawn at random."""
    assert not (found := find_unknown_labels(opened, split, count=256)), tell(found)


def test_answers_are_finite(opened, split):
    """Logits and every level of 64 samples, drawn at random."""
    assert not (found := find_nonfinite(opened, split, count=64)), tell(found)


def test_padding_is_where_the_records_say(opened, split):
    assert not (found := find_bad_padding(opened, split, count=64)), tell(found)


def test_images_labels_and_parameters_are_those_drawn_again(opened, split):
    """64 stored samples, drawn at random, byte for byte."""
    config = find_data_set(opened)
    if config is None:
        root = opened.manifest.information["settings"]["dataset"]["root"]
        pytest.skip(f"the data set is not at {root} on this machine")
    assert not (found := find_unlike_replay(opened, config, split, count=64)), tell(found)
