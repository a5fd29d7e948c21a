"""Fidelity: what is measured between cached and live answers, what is expected, and when it says
no.
"""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
import yaml

import cache_teacher.cli
from kdcache.analysis import fidelity, students
from kdcache.analysis.agreement import AnswerErrors, ScoreErrors
from kdcache.analysis.fidelity import (
    Limit,
    find_blurred,
    find_failures,
    find_least_cosines,
    find_limits,
    measure_fidelity,
)
from kdcache.cache.encodings import Encoding
from kdcache.cache.manifest import read_manifest, write_manifest
from kdcache.config.parser import make_config, merge
from kdcache.errors import CacheError, CacheMismatchError, TeacherError
from kdcache.models.teacher import Teacher
from kdcache.precompute.build import build_cache
from kdcache.report.phase_one_text import format_fidelity
from kdcache.training.distill import distill
from tests.support.helpers import check_one_line
from tests.support.tiny_teacher import build_tiny_fcn


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(students, "STEPS", 3)


@pytest.fixture(scope="module")
def compact_root(base_given, tmp_path_factory):
    """A cache with few coefficients. Read only."""
    root = tmp_path_factory.mktemp("compact") / "cache"
    few = {"encoding": "compact", "rank": {"low": 96, "mid": 192, "high": 256}}
    build_cache(make_config(merge(base_given, {"cache": {"path": str(root), **few}})))
    return root


@pytest.fixture
def student_given(given) -> dict:
    return {"student": given["student"], "train": {"batch_size": 4}}


# --- numbers


def test_errors_of_an_answer_are_those_worked_out_by_hand():
    errors = AnswerErrors(Encoding("int8"))
    live = torch.tensor([[3.0, 0.0], [4.0, 0.0]]).reshape(1, 2, 1, 2)  # the second position is 0
    errors.add(torch.tensor([[4.0, 0.0], [3.0, 0.0]]).reshape(1, 2, 1, 2), live)
    errors.add(live, live)
    found = errors.to_dict()
    assert found["max_abs"] == 1 and found["mean_abs"] == 2 / 8 and found["relative"] == 2 / 14
    assert found["cosine"] == pytest.approx((24 / 25 + 1) / 2)


def test_of_lowrank_only_the_direction_counts():
    live = torch.rand(2, 4, 3, 3) + 0.1
    errors = AnswerErrors(Encoding("lowrank", 4, 4, 0.1, ""))
    errors.add(7 * live, live)
    assert errors.to_dict()["max_abs"] < 1e-6 and errors.to_dict()["cosine"] == pytest.approx(1)


def test_errors_of_scores_are_divergence_and_agreement():
    live, cached = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    live[0, 0, 0], cached[0, 0, 0] = torch.tensor([4.0, 4.0]), torch.tensor([4.0, -4.0])
    errors = ScoreErrors(temperature=4.0)
    errors.add(cached, live)
    p, q = (1 / (1 + math.exp(-x)) for x in (1.0, -1.0))
    expected = (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))) / 2
    assert errors.to_dict() == {"kl": pytest.approx(expected), "temperature": 4.0, "agreement": 0.5}


def test_limits_are_those_of_the_least_faithful_encoding_read():
    kinds = {"logits": "float16", "low": "int8", "mid": "lowrank"}
    assert find_limits(kinds, exact=True) == {
        "kd": fidelity.EXACT,
        "feature": fidelity.LIMITS["feature"]["lowrank"],
    }
    assert find_limits({"logits": "float16"}, exact=False) == {"kd": fidelity.EXACT_NOT_FLOAT32}
    loose = find_limits(
        {"logits": "int8", "low": "lowrank"}, exact=False
    )  # never stricter than of an exact cache
    assert loose == {
        "kd": Limit(fidelity.EXACT_NOT_FLOAT32.grad_cos),
        "feature": fidelity.LIMITS["feature"]["lowrank"],
    }


@pytest.mark.parametrize(
    ("cosine", "loss", "count"),
    [(1.0, 0.0, 0), (0.98, 0.0, 1), (1.0, 2e-5, 1), (math.nan, math.nan, 2)],
)
def test_what_is_beyond_a_limit_is_said(cosine, loss, count):
    found = find_failures({"kd": {"grad_cos": cosine, "loss_rel": loss}}, {"kd": Limit(0.99, 1e-5)})
    assert len(found) == count and all("expected" in line for line in found)


def test_an_answer_that_is_lost_is_said_whatever_the_gradients_of_all_levels_say():
    least = find_least_cosines({"logits": "float16", "low": "int8", "high": "lowrank"}, exact=True)
    assert least == {"logits": 0.999999, "low": 0.999, "high": 0.9}
    answers = {"logits": {"cosine": 1.0}, "low": {"cosine": math.nan}, "high": {"cosine": 0.875}}
    low, high = find_blurred(answers, least)
    assert (
        low.startswith("cached low have a cosine of nan")
        and "0.8750000 with live ones, expected 0.9 or more" in high
    )
    assert find_least_cosines({"logits": "float16", "high": "lowrank"}, exact=False) == {
        "logits": 0.999,
        "high": 0.9,
    }


# --- caches


@pytest.mark.parametrize("written", [{"device": "Some GPU"}, {"devices": ["Some GPU", "cpu"]}])
def test_a_cache_that_a_gpu_wrote_is_judged_as_one_of_a_gpu(cache, student_given, written):
    """Its float32 is not that of the CPU that compares, to the last bits."""
    manifest = read_manifest(cache.cache.path)
    information = {**manifest.information, **written}
    write_manifest(cache.cache.path, replace(manifest, information=information))
    result = measure_fidelity(cache.cache.path, student_given, num_samples=2)
    assert result["limits"]["kd"] == vars(fidelity.EXACT_NOT_FLOAT32)
    assert set(result["least_cosines"].values()) == {fidelity.NOT_FLOAT32_COSINE}
    names = " and ".join(written.get("devices", ["Some GPU"]))
    assert f"(seed 0, cpu, written on {names})" in format_fidelity(result, "cache")


def test_a_cache_of_which_nobody_says_what_wrote_it_is_judged_as_one_of_a_cpu(cache, student_given):
    manifest = read_manifest(cache.cache.path)
    information = {k: v for k, v in manifest.information.items() if k != "device"}
    write_manifest(cache.cache.path, replace(manifest, information=information))
    result = measure_fidelity(cache.cache.path, student_given, num_samples=2)
    assert result["limits"]["kd"] == vars(fidelity.EXACT) and "written_on" not in result


def test_an_exact_cache_is_faithful_and_says_so(cache, student_given):
    result = measure_fidelity(cache.cache.path, student_given, num_samples=6)
    assert result["failures"] == [] and result["samples"] == 6
    assert set(result["students"]) == {"fresh", fidelity.TRAINED} and set(result["answers"]) == {
        "logits",
        "low",
        "mid",
        "high",
    }
    for terms in result["students"].values():
        assert terms["kd"]["grad_cos"] > 0.999999 and terms["feature"]["align_grad_cos"] > 0.999999
        assert 0 < terms["feature"]["loss_rel"] < 1e-4
    assert 0 < result["answers"]["low"]["relative"] < 1e-3  # float16's last bit, and no less
    assert read_manifest(cache.cache.path).information["fidelity"] == result
    again = measure_fidelity(cache.cache.path, student_given, num_samples=6)
    assert again == result
    assert (
        measure_fidelity(cache.cache.path, student_given, num_samples=6, seed=1)["answers"]
        != result["answers"]
    )


def test_a_compact_cache_is_measured_by_its_directions(compact_root, student_given, tmp_path):
    root = shutil.copytree(compact_root, tmp_path / "cache")
    result = measure_fidelity(root, student_given, num_samples=100)
    assert result["samples"] == 20  # all there are
    assert (
        result["answers"]["low"]["encoding"] == "lowrank"
        and 0.9 < result["answers"]["low"]["cosine"] < 0.99999
    )
    felt = result["students"][fidelity.TRAINED]
    assert 0.95 < felt["feature"]["grad_cos"] < 0.9999999 and felt["kd"]["grad_cos"] > 0.9999


def test_a_teacher_that_says_something_else_is_noticed(cache, student_given, monkeypatch):
    ask = Teacher.__call__

    def answer_otherwise(self, images):
        found = ask(self, images)
        found["mid"] = found["mid"] * 1.5 + 0.3 * found["mid"].roll(1, 1)
        return found

    monkeypatch.setattr(Teacher, "__call__", answer_otherwise)
    failures = measure_fidelity(cache.cache.path, student_given, num_samples=4)["failures"]
    assert failures[0].startswith("cached mid have a cosine of 0.98")
    assert len(failures) > 1 and all(line.startswith("feature") for line in failures[1:])


def test_the_student_of_a_run_is_asked_too(cache, given, student_given):
    distill(
        merge(given, {"train": {"epochs": 1}, "run": {"baseline": False}}), root=cache.cache.path
    )
    run = cache.run.dir
    result = measure_fidelity(cache.cache.path, student_given, num_samples=4, run=run)
    assert set(result["students"]) == {"fresh", fidelity.TRAINED, f"of {run}"}
    assert result["students"][f"of {run}"]["kd"] != result["students"]["fresh"]["kd"]


@pytest.mark.parametrize("change", [
    {"student": {"aspp_channels": 24}}, {"loss": {"gamma": 0.0}}, {"cache": {"levels": ["mid"]}},
])  # fmt: skip
def test_runs_unlike_the_caches_settings_are_asked_for_what_they_have(
    cache, given, student_given, change
):
    distill(
        merge(merge(given, change), {"train": {"epochs": 1}, "run": {"baseline": False}}),
        root=cache.cache.path,
    )
    result = measure_fidelity(cache.cache.path, student_given, num_samples=4, run=cache.run.dir)
    felt = result["students"][f"of {cache.run.dir}"]
    assert ("feature" in felt) == ("loss" not in change) and felt["kd"]["grad_cos"] > 0.999


@pytest.mark.parametrize(
    "change", [{"cache": {"levels": []}}, {"loss": {"gamma": 0.0}}, {"teacher": {"batch_size": 1}}]
)
def test_phase_one_ends_well_whatever_its_settings(given, capsys, tmp_path, change):
    path = tmp_path / "settings.yaml"
    path.write_text(
        yaml.safe_dump(merge(merge(given, {"cache": {"path": str(tmp_path / "new")}}), change))
    )
    assert cache_teacher.cli.main(["--config", str(path)]) == 0
    assert "fidelity of 8 samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("batch_size", "samples", "told"), [(8, 9, 9), (7, 8, 8), (12, 20, 20), (4, 1, 2)]
)
def test_any_number_of_samples_in_any_batches_will_do(
    cache, student_given, batch_size, samples, told
):
    given_ = merge(student_given, {"teacher": {"batch_size": batch_size}})
    assert measure_fidelity(cache.cache.path, given_, num_samples=samples)["samples"] == told


@pytest.mark.parametrize(("teacher", "words"), [
    ({"high_stride": 8}, "teacher.high_stride is absent, expected 8"),
    ({"layers": {"mid": "layer3"}}, "teacher.layers.mid is 'layer2', expected 'layer3'"),
    ({"precision": "bfloat16"}, "teacher.precision is 'float32', expected 'bfloat16'"),
])  # fmt: skip
def test_another_question_to_the_same_teacher_is_refused(cache, teacher, words):
    with pytest.raises(CacheMismatchError) as error:
        measure_fidelity(cache.cache.path, {"teacher": teacher}, num_samples=2)
    check_one_line(error, words, "give the teacher the cache was built with")


def test_a_live_answer_that_is_not_finite_is_one_line(cache, student_given, monkeypatch):
    ask = Teacher.__call__
    monkeypatch.setattr(
        Teacher,
        "__call__",
        lambda self, images: {
            k: v * (k != "mid" or torch.nan) for k, v in ask(self, images).items()
        },
    )
    with pytest.raises(TeacherError, match="teacher's mid is not finite"):
        measure_fidelity(cache.cache.path, student_given, num_samples=2)


def test_a_result_that_cannot_be_kept_is_told_all_the_same(
    cache, student_given, monkeypatch, caplog
):
    def refuse(root, facts):
        raise CacheError(f"{root}: folder is unwritable")

    monkeypatch.setattr(fidelity, "add_information", refuse)
    assert measure_fidelity(cache.cache.path, student_given, num_samples=2)["failures"] == []
    assert "the result is not kept in the cache" in caplog.text


def test_a_run_from_another_cache_is_refused(cache, compact_root, given, student_given, tmp_path):
    distill(
        merge(given, {"train": {"epochs": 1}, "run": {"baseline": False}}), root=cache.cache.path
    )
    other = shutil.copytree(compact_root, tmp_path / "other")
    with pytest.raises(CacheMismatchError) as error:
        measure_fidelity(other, student_given, num_samples=2, run=cache.run.dir)
    check_one_line(error, "cache identity is", "give a run that was trained from this cache")


def test_another_teacher_or_none_is_one_line(cache, tmp_path):
    torch.manual_seed(8)
    torch.save(
        build_tiny_fcn("fcn_resnet50", num_classes=8, aux_head=False).state_dict(),
        tmp_path / "other.pth",
    )
    with pytest.raises(CacheMismatchError) as error:
        measure_fidelity(cache.cache.path, {"teacher": {"weights": str(tmp_path / "other.pth")}})
    check_one_line(error, "teacher.weights_sha256 is", "give the teacher the cache was built with")
    with pytest.raises(TeacherError) as error:
        measure_fidelity(cache.cache.path, {"teacher": {"weights": str(tmp_path / "missing.pth")}})
    check_one_line(error, "missing.pth")


# --- the command


def run(capsys, *argv: object) -> tuple[int, str, str]:
    code = cache_teacher.cli.main(["fidelity", *map(str, argv)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_tells_by_words_json_and_exit_code(cache, capsys, monkeypatch):
    words = ["--samples", "4", "--student.aspp_channels=16", "--train.batch_size", "4"]
    code, out, _ = run(capsys, cache.cache.path, *words)
    assert code == 0 and "faithful: every limit is kept" in out and "same class 100.00 %" in out
    lines = [line for line in out.splitlines() if " student " in line]
    assert [line.endswith("; not judged") for line in lines] == ["fresh" in line for line in lines]
    assert (
        len(lines) == 4 and sum("expected: cosine 0.999999 or more" in line for line in lines) == 2
    )
    code, out, _ = run(capsys, cache.cache.path, *words, "--json")
    assert code == 0 and json.loads(out)["failures"] == []
    monkeypatch.setitem(fidelity.LIMITS["kd"], "float16", Limit(1.1))
    code, out, _ = run(capsys, cache.cache.path, *words)
    assert code == 1 and "BEYOND ITS LIMIT: kd gradient's cosine is" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--samples", "4"], "PATH is missing, expected the cache: a folder"),
        (["x", "--samples", "0"], "--samples is '0', expected a whole number, 1 or more"),
        (["x", "--samples"], "--samples has no value, expected N"),
        (["x", "--seed=-1"], "--seed is '-1'"),
        (["x", "--sample", "3"], "sample"),
        (["nowhere"], "manifest.json is missing"),
        (["CACHE", "--teacher.weights", "/nowhere.pth"], "/nowhere.pth"),
        (
            ["CACHE", "--run", "nowhere"],
            "nowhere: --run is no run, expected student_kd_best.pth; give the folder of a run",
        ),
        (["CACHE", "--cache.encoding", "compact"], "cache.encoding is"),
        (
            ["CACHE", "--augment.seed", "7"],
            "augment.seed is 0, expected 7; leave it out: the cache is compared as it is",
        ),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_code_2(cache, capsys, argv, words):
    """1 would say that the cache is not faithful."""
    code, _, err = run(capsys, *(cache.cache.path if word == "CACHE" else word for word in argv))
    (line,) = err.splitlines()
    assert code == 2 and words in line


@pytest.mark.parametrize("error", [MemoryError("no room"), OSError(5, "Input/output error")])
def test_a_machine_that_cannot_measure_is_no_unfaithful_cache(capsys, monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr("kdcache.analysis.fidelity.measure_fidelity", fail)
    code, _, err = run(capsys, "cache")
    (line,) = err.splitlines()
    assert code == 2 and line.startswith("cache_teacher fidelity: cache: cannot be compared (")


def test_phase_one_ends_with_a_small_measurement(given, capsys, tmp_path, monkeypatch):
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(merge(given, {"cache": {"path": str(tmp_path / "new")}})))
    assert cache_teacher.cli.main(["--config", str(path)]) == 0
    assert (
        "fidelity of 8 samples: cosine of the gradients that a student after 40 steps"
        in capsys.readouterr().out
    )
    assert read_manifest(tmp_path / "new").information["fidelity"]["samples"] == 8
    with monkeypatch.context() as patch:
        patch.setattr(
            "kdcache.analysis.fidelity.measure_fidelity",
            lambda *args, **kwargs: pytest.fail("nothing was written"),
        )
        assert cache_teacher.cli.main(["--config", str(path)]) == 0
    manifest = read_manifest(tmp_path / "new")
    information = {
        name: value for name, value in manifest.information.items() if name != "fidelity"
    }
    write_manifest(
        tmp_path / "new", replace(manifest, information=information)
    )  # it was interrupted
    capsys.readouterr()
    assert cache_teacher.cli.main(["--config", str(path)]) == 0
    assert "fidelity of 8 samples: " in capsys.readouterr().out
