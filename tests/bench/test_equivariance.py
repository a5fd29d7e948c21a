"""The table of what flips and crops miss: of every cache, and in one line if it cannot be made."""

import pytest

from kdcache.analysis import students
from kdcache.config.parser import make_config, merge
from kdcache.precompute.build import build_cache
from tests.bench import equivariance


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(equivariance, "BORDER_PX", 8)
    monkeypatch.setattr(students, "STEPS", 2)


@pytest.fixture
def run(teacher_file):
    """The command, with a crop that fits the views."""

    def run(root, *argv):
        return equivariance.main(
            [str(root), "--teacher.weights", str(teacher_file), "--crop", "32", *argv]
        )

    return run


def build(given, **settings):
    config = make_config(merge(given, settings))
    build_cache(config)
    return config.cache.path


def test_a_last_batch_of_one_sample_joins_the_one_before_it(run, built_root, capsys):
    assert run(built_root, "--num-samples", "5") == 0  # batches of four
    assert capsys.readouterr().out.startswith("5 samples of 32 x 32 pixels")


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.nightly), 3])
def test_a_cache_of_logits_alone_has_no_columns_of_features(given, run, capsys, batch_size):
    few = {"levels": [], "shard_samples": 8}
    root = build(
        given,
        cache=few,
        loss={"gamma": 0.0},
        augment={"views": 1},
        teacher={"batch_size": batch_size},
    )
    assert run(root, "--num-samples", "4") == 0
    head, _, same, *_ = capsys.readouterr().out.splitlines()[2:]
    assert "feature" not in head and "cosine low" not in head and "gradient kd, fresh" in head
    assert same.count("|") == head.count("|") and " 1.0000 (1.0000) " in same


def test_a_cache_that_is_not_there_is_one_line(run, tmp_path, capsys):
    assert run(tmp_path / "nowhere") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"equivariance: {tmp_path / 'nowhere'}: ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--crop", "0"], "--crop is (0, 0), expected multiples of 16 above 16"),
        (["--num-samples", "-3"], "it is '-3', expected a whole number, 2 or more"),
        (["--num-samples", "1"], "it is '1', expected a whole number, 2 or more"),
    ],
)
def test_a_number_that_means_nothing_is_refused(run, built_root, capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        run(built_root, *argv)
    assert stop.value.code == 2 and message in capsys.readouterr().err
