"""The forecast of phase one: its bytes are those that are then written, and it leaves no trace."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import quick
import torch
import yaml
from helpers import check_one_line

import cache_teacher.cli
from kdcache.cache.build import build_cache
from kdcache.cache.layout import Group, commit_path
from kdcache.config import Config
from kdcache.data.sample_set import write_sample_set
from kdcache.errors import CacheError, CacheMismatchError, TeacherError
from kdcache.forecast import forecast_cache
from kdcache.forecast.probe import pick_samples
from kdcache.report.cache_info import describe_cache
from kdcache.report.forecast import format_bytes, format_forecast, format_time
from kdcache.settings import make_config, merge

RANKS = {"low": 2, "mid": 3, "high": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """More images than are probed."""
    root = tmp_path_factory.mktemp("data")
    write_sample_set(root, num_train=150, num_val=20, size_px=48)
    return root


@pytest.fixture(autouse=True)
def _quick_teacher(monkeypatch):
    monkeypatch.setattr("kdcache.cache.build.build_teacher", quick.make_quick_teacher)


@pytest.fixture
def given(data, tmp_path) -> dict:
    (tmp_path / "caches").mkdir()
    few = {"cache": {"shard_samples": 8, "rank": RANKS}, "teacher": {"batch_size": 4}}
    return merge(quick.quick_given(data, tmp_path / "caches" / "one"), few)


@pytest.fixture
def config(given) -> Config:
    return make_config(given)


def encode(config: Config, encoding: object, codec: str = "auto") -> Config:
    return replace(config, cache=replace(config.cache, encoding=encoding, codec=codec))


def look(folder: Path) -> dict:
    """Every path with contents and time of change."""
    return {
        path: (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


def array_bytes(splits: dict) -> dict:
    return {(split, name): array["bytes"] for split in splits for name, array in splits[split]["arrays"].items()}


def build(config: Config) -> dict:
    build_cache(config)
    return array_bytes(describe_cache(config.cache.path)["splits"])


def tree_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


# --- bytes


@pytest.mark.parametrize("encoding", ["float16", "half", {"low": "int8", "high": "lowrank"}])
def test_bytes_of_raw_arrays_are_exact(config, encoding):
    config = encode(config, encoding, "raw")
    facts = forecast_cache(config)
    assert facts["size"]["exact"] and array_bytes(facts["splits"]) == build(config)
    assert facts["size"]["bytes"] == pytest.approx(tree_bytes(config.cache.path), rel=0.01)
    documents = tree_bytes(config.cache.path) - facts["size"]["array_bytes"]
    assert facts["size"]["document_bytes"] == pytest.approx(documents, rel=0.03)


@pytest.mark.parametrize(("encoding", "codec"), [("float16", "blosc-lz4"), ("half", "blosc-zstd"), ("compact", "auto")])
def test_bytes_of_coded_arrays_are_within_a_hundredth(config, encoding, codec):
    config = encode(config, encoding, codec)
    facts = forecast_cache(config)
    assert facts["probe"]["num_samples"]["train"] < 2 * 150 and not facts["size"]["exact"]
    assert facts["size"]["array_bytes"] == pytest.approx(sum(build(config).values()), rel=0.01)


def test_other_encodings_weigh_what_they_then_do(config):
    facts = forecast_cache(config)
    others = {(other["encoding"], other["codec"]): other["size_bytes"] for other in facts["others"]}
    presets, codecs = ("exact", "half", "compact"), ("raw", "blosc-zstd")
    assert set(others) == {(preset, codec) for preset in presets for codec in codecs} - {("exact", "raw")}
    for place, ((preset, codec), size_bytes) in enumerate(others.items()):
        other = encode(
            replace(config, cache=replace(config.cache, path=config.cache.path / f"../{place}")), preset, codec
        )
        rel = 1e-9 if codec == "raw" else 0.03
        assert size_bytes == pytest.approx(sum(build(other).values()), rel=rel)


def test_answers_may_lie_in_memory_channels_last(config, monkeypatch):
    def ask(self, image_NHWC, real=quick.QuickTeacher.__call__):
        last = torch.channels_last
        return {name: values.contiguous(memory_format=last) for name, values in real(self, image_NHWC).items()}

    expected = forecast_cache(config)["others"]
    monkeypatch.setattr(quick.QuickTeacher, "__call__", ask)
    found = forecast_cache(config)["others"]
    sizes = [[other["size_bytes"] for other in others] for others in (found, expected)]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)


def test_ranks_of_the_settings_may_be_more_than_the_channels_where_no_level_is_lowrank(config):
    config = replace(config, cache=replace(config.cache, rank=make_config().cache.rank))
    assert {"compact"} < {other["encoding"] for other in forecast_cache(config)["others"]}


def test_shard_groups_larger_than_the_split_are_probed_by_smaller_ones(config):
    config = replace(config, cache=replace(config.cache, shard_samples=1000))
    facts = forecast_cache(config)
    assert facts["splits"]["train"]["groups"] == 2 and facts["probe"]["num_samples"]["train"] <= 6 * 16
    assert array_bytes(facts["splits"]) == build(config)


@pytest.mark.parametrize("most", [1, 5, 40, 400, 500])
def test_samples_are_different_the_same_each_time_and_over_all_the_split(most):
    chosen = pick_samples(400, most)
    assert chosen == pick_samples(400, 400)[:most] and len(set(chosen)) == min(most, 400) and max(chosen) < 400
    assert most < 40 or len({sample // 100 for sample in chosen}) == 4


# --- time, room, worth


def test_parts_of_the_time_make_its_sum_and_the_break_even(config):
    facts = forecast_cache(config)
    parts, worth = facts["time"], facts["break_even"]
    assert parts["missing_s"] == pytest.approx(sum(parts[name] for name in ("setup_s", "val_s", "train_s", "score_s")))
    assert parts["all_s"] == parts["missing_s"] and all(value > 0 for value in parts.values())
    assert worth["epochs"] == pytest.approx(parts["all_s"] / (150 * worth["teacher_s"]))


def test_a_probe_ends_in_time_where_the_teacher_is_slow(config, monkeypatch):
    monkeypatch.setattr("kdcache.forecast.probe.MOST_S", 0.0)
    assert forecast_cache(config)["probe"]["num_samples"] == {"val": 4, "train": 16}  # the least: two shard groups


def test_a_disk_that_is_too_small_is_told(config, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("kdcache.forecast.forecast.shutil.disk_usage", lambda folder: usage)
    facts = forecast_cache(config)
    assert facts["disk"]["fits"] is False and "IT DOES NOT FIT" in format_forecast(facts)


# --- no trace


def test_nothing_is_left_behind(config, tmp_path):
    before = look(tmp_path / "caches")
    forecast_cache(config)
    assert look(tmp_path / "caches") == before


def test_folders_above_the_cache_are_not_made(config, tmp_path):
    forecast_cache(replace(config, cache=replace(config.cache, path=tmp_path / "a" / "b" / "c")))
    assert not (tmp_path / "a").exists() and [path.name for path in tmp_path.iterdir()] == ["caches"]


@pytest.mark.parametrize("stop_at", [1, 7, 12])
@pytest.mark.parametrize("error", [KeyboardInterrupt, TeacherError])
def test_nothing_is_left_behind_by_an_interruption_or_a_failure(config, tmp_path, monkeypatch, error, stop_at):
    asked = iter(range(1, 1000))

    def ask(self, image_NHWC, real=quick.QuickTeacher.__call__):
        if next(asked) == stop_at:
            raise error("stop")
        return real(self, image_NHWC)

    monkeypatch.setattr(quick.QuickTeacher, "__call__", ask)
    with pytest.raises(error):
        forecast_cache(config)
    assert list((tmp_path / "caches").iterdir()) == []


def test_nothing_is_left_behind_by_a_disk_that_refuses(config, tmp_path, monkeypatch):
    def refuse(path, parts):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch, pytest.raises(CacheError, match="No space left"):
        patch.setattr("kdcache.cache.durable.write_file", refuse)
        forecast_cache(config)
    assert list((tmp_path / "caches").iterdir()) == []


def test_a_cache_that_is_there_is_not_touched_and_what_is_missing_is_told(config, tmp_path):
    config = encode(config, "compact")
    build_cache(config)
    for name in ("train-v0001-g00002", "train-v0001-g00018"):  # 8 samples and the last 6
        commit_path(config.cache.path, Group("train", 0, 0, 0, 0)).with_name(f"{name}.json").unlink()
    before = look(tmp_path / "caches")
    facts = forecast_cache(config)
    assert look(tmp_path / "caches") == before
    train = facts["splits"]["train"]
    assert (train["groups"], train["groups_committed"], train["num_missing"]) == (38, 36, 14)
    assert facts["size"]["missing_bytes"] < 0.1 * facts["size"]["bytes"]
    assert facts["time"]["missing_s"] < facts["time"]["all_s"]
    assert "39 of 41 shard groups are there; still to do: 14 samples, " in format_forecast(facts)


def test_a_complete_cache_has_nothing_to_do_and_keeps_its_views(config):
    build_cache(config)
    facts = forecast_cache(replace(config, augment=replace(config.augment, views=1)))
    assert facts["size"]["missing_bytes"] == 0 and facts["splits"]["train"]["num_views"] == 2
    assert "complete, nothing is to do" in format_forecast(facts)


def test_another_cache_is_refused(config):
    build_cache(config)
    with pytest.raises(CacheMismatchError) as error:
        forecast_cache(encode(config, "half"))
    check_one_line(error, "cache.encoding is")


# --- the command


@pytest.fixture
def run(given, tmp_path):
    """The command with these settings."""
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(given))
    return lambda *argv: cache_teacher.cli.main(["plan", "--config", str(path), *argv])


def test_the_command_tells_a_person(run, capsys):
    assert run() == 0
    text = capsys.readouterr().out
    for part in (
        "nothing is there yet",
        "train: 150 images x 2 views",
        "(arrays exact)",
        "are free at",
        "time: ",
        "epochs",
        "compact",
    ):
        assert part in text


def test_json_is_the_whole_forecast(run, capsys):
    assert run("--json", "--cache.encoding", "half") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["encoding"]["low"] == "int8" and facts["splits"]["train"]["arrays"]["low"]["dtype"] == "int8"


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ("--cache.pth x", 2, "cache.pth is unknown, expected cache.path"),
        ("--cache.encoding tiny", 2, "cache.encoding is 'tiny'"),
        ("--cache.encoding compact --cache.rank.low 5", 2, "cache.rank.low is 5, expected 1 to 4"),
        ("--dataset.root /nowhere", 1, "set dataset.root"),
        ("caches/x", 2, "is no setting"),
    ],
)
def test_bad_settings_are_one_line(run, capsys, argv, code, message):
    assert run(*argv.split()) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cache_teacher plan: ") and message in line


def test_a_file_in_the_way_is_one_line(run, capsys, tmp_path):
    (tmp_path / "file").touch()
    assert run("--cache.path", str(tmp_path / "file" / "cache")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "it is a file" in line


def test_numbers_are_told_in_units_a_person_reads():
    assert [format_bytes(n) for n in (0, 999, 1000, 1_234_567, 999_999_999, 95e9, 2.5e15)] == [
        "0 bytes", "999 bytes", "1 kB", "1.23 MB", "1 GB", "95 GB", "2500 TB"
    ]  # fmt: skip
    assert [format_time(s) for s in (0.5, 42, 100, 5400)] == ["0.5 s", "42 s", "2 min", "1.5 h"]
