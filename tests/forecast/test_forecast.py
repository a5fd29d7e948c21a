"""Bytes of a forecast are those that are then written."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kdcache.config import Config
from kdcache.config.parser import make_config
from kdcache.forecast import forecast
from kdcache.forecast.forecast import forecast_cache
from kdcache.forecast.probe import pick_samples
from kdcache.precompute.build import build_cache
from kdcache.report.cache_text import describe_cache
from kdcache.report.phase_one_text import format_forecast
from tests.support import quick
from tests.support.forecasts import encode, group


def array_bytes(splits: dict) -> dict:
    return {
        (split, name): array["bytes"]
        for split in splits
        for name, array in splits[split]["arrays"].items()
    }


def build(config: Config) -> dict:
    build_cache(config)
    return array_bytes(describe_cache(config.cache.path)["splits"])


def sum_bases(config: Config) -> int:
    """Of a cache that is there."""
    return sum(path.stat().st_size for path in config.cache.path.glob("train/*_basis/c/0/0"))


def tree_bytes(root) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("encoding", ["float16", "half", {"low": "int8", "high": "lowrank"}])
def test_bytes_of_raw_arrays_are_exact(config, encoding):
    config = encode(config, encoding, "raw")
    facts = forecast_cache(config)
    assert facts["size"]["exact"] and array_bytes(facts["splits"]) == build(config)
    assert facts["size"]["bytes"] == pytest.approx(tree_bytes(config.cache.path), rel=0.01)
    documents = tree_bytes(config.cache.path) - facts["size"]["array_bytes"]
    assert facts["size"]["document_bytes"] == pytest.approx(documents, rel=0.03)


@pytest.mark.parametrize(
    ("encoding", "codec"), [("float16", "blosc-lz4"), ("half", "blosc-zstd"), ("compact", "auto")]
)
def test_bytes_of_coded_arrays_are_within_a_hundredth(config, encoding, codec):
    config = encode(config, encoding, codec)
    facts = forecast_cache(config)
    assert facts["probe"]["num_samples"]["train"] < 2 * 150 and not facts["size"]["exact"]
    assert facts["size"]["array_bytes"] == pytest.approx(sum(build(config).values()), rel=0.01)
    text, samples = format_forecast(facts), facts["probe"]["num_samples"]
    assert f"as in {samples['train']} training and {samples['val']} validation samples" in text


def test_other_encodings_weigh_what_they_then_do(config):
    facts = forecast_cache(config)
    others = {(other["encoding"], other["codec"]): other["size_bytes"] for other in facts["others"]}
    presets, codecs = ("exact", "half", "compact"), ("raw", "blosc-zstd")
    assert set(others) == {(preset, codec) for preset in presets for codec in codecs} - {
        ("exact", "raw")
    }
    for place, ((preset, codec), size_bytes) in enumerate(others.items()):
        other = encode(
            replace(config, cache=replace(config.cache, path=config.cache.path / f"../{place}")),
            preset,
            codec,
        )
        rel = 1e-9 if codec == "raw" else 0.03
        assert size_bytes == pytest.approx(sum(build(other).values()) + sum_bases(other), rel=rel)
        assert (sum_bases(other) > 0) == (preset == "compact")


@pytest.mark.parametrize("codec", ["raw", "blosc-lz4"])
def test_what_others_save_is_counted_from_these_settings_on_the_same_samples(config, codec):
    facts = forecast_cache(encode(config, "half", codec))
    here, exact = facts["compared"]["here_bytes"], facts["size"]["array_bytes"]
    assert here == exact if codec == "raw" else here == pytest.approx(exact, rel=0.02)
    assert facts["compared"][
        "num_samples"
    ] == 16 and "(from 16 samples, of which these settings make " in (format_forecast(facts))


def test_answers_may_lie_in_memory_channels_last(config, monkeypatch):
    def ask(self, image_NHWC, real=quick.QuickTeacher.__call__):
        last = torch.channels_last
        return {
            name: values.contiguous(memory_format=last)
            for name, values in real(self, image_NHWC).items()
        }

    expected = forecast_cache(config)["others"]
    monkeypatch.setattr(quick.QuickTeacher, "__call__", ask)
    found = forecast_cache(config)["others"]
    sizes = [[other["size_bytes"] for other in others] for others in (found, expected)]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)


def test_ranks_of_the_settings_may_be_more_than_the_channels_where_no_level_is_lowrank(config):
    config = replace(config, cache=replace(config.cache, rank=make_config().cache.rank))
    assert {"compact"} < {other["encoding"] for other in forecast_cache(config)["others"]}


def test_shard_groups_larger_than_the_split_are_probed_by_smaller_ones(config):
    config = group(config, 1000)
    facts = forecast_cache(config)
    assert (
        facts["splits"]["train"]["groups"] == 2
        and facts["probe"]["num_samples"]["train"] <= 22 * 16
    )
    assert array_bytes(facts["splits"]) == build(config)


@pytest.mark.parametrize("most", [1, 5, 40, 400, 500])
def test_samples_are_different_the_same_each_time_and_over_all_the_split(most):
    chosen = pick_samples(400, most)
    assert (
        chosen == pick_samples(400, 400)[:most]
        and len(set(chosen)) == min(most, 400)
        and max(chosen) < 400
    )
    assert most < 40 or len({sample // 100 for sample in chosen}) == 4


def test_the_clock_of_a_step_starts_when_a_gpu_has_ended_the_one_before(monkeypatch):
    seen, cuda = [], torch.device("cuda")
    fake = SimpleNamespace(student=SimpleNamespace(train=lambda: None))
    layout = SimpleNamespace(arrays=())
    manifest = SimpleNamespace(encodings={}, layouts={"train": layout})
    teacher = SimpleNamespace(device=cuda)
    job = SimpleNamespace(config=Config(), teacher=teacher, targets={}, bases={}, manifest=manifest)
    monkeypatch.setattr(forecast, "build_learner", lambda config, teacher_channels: fake)
    monkeypatch.setattr(forecast, "train_step", lambda *args, where: seen.append(where[:6]))
    monkeypatch.setattr(forecast.time, "monotonic", lambda: seen.append("clock") or 0.0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: seen.append("wait"))
    forecast._time_step(job, 2)
    assert seen == ["clock", "step 0", "wait", "clock", "step 1", "wait", "clock"]
