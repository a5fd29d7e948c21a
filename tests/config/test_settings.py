"""Settings: YAML, then overrides, typed and checked; a mistake is one line with the nearest known
name.
"""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest
import yaml

from kdcache.config import KINDS, Config, DatasetConfig, config_from_dict, config_to_dict
from kdcache.config.options import Parser, override, read_given
from kdcache.config.parser import flatten, make_config, merge, read_settings, setting_types
from kdcache.config.yaml_file import dump_yaml, load_yaml
from kdcache.errors import SettingsError
from kdcache.progress import escape_line
from kdcache.training.grid import read_grid
from tests.support.helpers import check_one_line

CONFIGS = Path(__file__).parents[2] / "configs"


def make_parser() -> Parser:
    return Parser(prog="program", description="For tests.", settings=True)


@pytest.fixture
def read(tmp_path: Path):
    """Settings from overrides and the text of a YAML file."""

    def read_settings(*argv: str, text: str | bytes | None = None) -> dict:
        words = list(argv)
        if text is not None:
            (tmp_path / "my.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
            words = ["--config", str(tmp_path / "my.yaml"), *words]
        return read_given(make_parser().parse_args(words))

    return read_settings


@pytest.fixture
def refused(read):
    """Check that settings are refused, as a usage error, in one line that holds all parts."""

    def check(*argv: str, text: str | bytes | None = None, parts: tuple[str, ...]) -> None:
        with pytest.raises(SettingsError) as error:
            make_config(read(*argv, text=text))
        check_one_line(error, *parts)
        assert error.value.exit_code == 2

    return check


# --- merging


def test_nothing_given_is_the_defaults(read):
    assert read() == {}
    assert make_config(read()) == Config()


def test_yaml_and_overrides_merge_and_the_override_wins(read):
    given = read(
        "--loss.beta", "0.7", "--train.lr", "1e-2", text="loss:\n  alpha: 2\n  beta: 0.1\n"
    )
    assert given == {"loss": {"alpha": 2.0, "beta": 0.7}, "train": {"lr": 0.01}}
    config = make_config(given)
    assert (config.loss.alpha, config.loss.beta, config.loss.gamma) == (2.0, 0.7, 0.3)


def test_override_wins_wherever_it_stands(read, tmp_path: Path):
    (tmp_path / "late.yaml").write_text("loss:\n  beta: 0.1\n  gamma: 0.2\n")
    before = read("--loss.beta", "0.7", "--config", str(tmp_path / "late.yaml"))
    after = read("--config", str(tmp_path / "late.yaml"), "--loss.beta", "0.7")
    assert after == {"loss": {"beta": 0.7, "gamma": 0.2}}
    assert before == after


def test_nested_sections_merge(read):
    given = read(
        "--teacher.layers.low",
        "layer2",
        text="teacher:\n  layers:\n    low: layer3\n    mid: layer1\n",
    )
    assert given == {"teacher": {"layers": {"low": "layer2", "mid": "layer1"}}}
    layers = make_config(given).teacher.layers
    assert (layers.low, layers.mid, layers.high) == ("layer2", "layer1", "layer3")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--run.resume"], {"resume": True}),
        (["--run.resume", "--run.baseline", "false"], {"resume": True, "baseline": False}),
        (["--run.baseline", "false", "--run.resume"], {"resume": True, "baseline": False}),
        (["--run.resume=false"], {"resume": False}),
        (["--run.resume", "true"], {"resume": True}),
    ],
)
def test_switch_without_a_value_means_true(read, argv: list[str], expected: dict):
    assert read(*argv) == {"run": expected}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--train.lr", "1e-3"], {"train": {"lr": 0.001}}),
        (["--train.epochs", "+3"], {"train": {"epochs": 3}}),
        (["--train.seed", "1_000"], {"train": {"seed": 1000}}),
        (["--train.epochs", "1e2"], {"train": {"epochs": 100}}),
        (["--train.crop", "32.0"], {"train": {"crop": 32}}),
        (["--run.resume", "on"], {"run": {"resume": True}}),
        (
            ["--student.options", "{a: 3.0, b: 3, c: on}"],
            {"student": {"options": {"a": 3.0, "b": 3, "c": "on"}}},
        ),
        (["--dataset.root", "3"], {"dataset": {"root": "3"}}),
        (["--dataset.train_split", "true"], {"dataset": {"train_split": "true"}}),
        (["--train.compile", "off"], {"train": {"compile": "off"}}),
        (["--teacher.high_stride", "8"], {"teacher": {"high_stride": 8}}),
        (["--cache.levels", "[low, mid]"], {"cache": {"levels": ["low", "mid"]}}),
        (["--cache.stage_dir", "null"], {"cache": {"stage_dir": None}}),
        (["--cache.encoding", "{low: int8}"], {"cache": {"encoding": {"low": "int8"}}}),
        (["--cache.encoding", "int8"], {"cache": {"encoding": "int8"}}),
    ],
)
def test_words_become_what_their_setting_takes(read, words: list[str], expected: dict):
    assert read(*words) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n  lr: 1e-3\n", {"train": {"lr": 0.001}}),
        ("train:\n  epochs: '3'\n", {"train": {"epochs": 3}}),
        ("dataset:\n  train_split: 2012-01-01\n", {"dataset": {"train_split": "2012-01-01"}}),
        ("dataset:\n  train_split: 2012_01\n", {"dataset": {"train_split": "2012_01"}}),
        ("dataset:\n  train_split: 010\n", {"dataset": {"train_split": "010"}}),
        (
            "dataset:\n  class_names: [no, yes, 01, 1:30, =, y]\n",
            {"dataset": {"class_names": ["no", "yes", "01", "1:30", "=", "y"]}},
        ),
        ("train:\n  compile: on\n", {"train": {"compile": "on"}}),
        ("train:\n  compile: off\n", {"train": {"compile": "off"}}),
        ("run:\n  track: none\n", {"run": {"track": "none"}}),
        ("run:\n  resume: yes\n  baseline: Off\n", {"run": {"resume": True, "baseline": False}}),
        ("train:\n  epochs: 3.0\n", {"train": {"epochs": 3}}),
        ("train:\n  epochs: 1e2\n  lr: 1\n", {"train": {"epochs": 100, "lr": 1.0}}),
        ("dataset:\n  size: [32.0, 48]\n", {"dataset": {"size": [32, 48]}}),
        (
            "dataset:\n  label_map: {0: 0.0, 255: 1e0}\n",
            {"dataset": {"label_map": {"0": 0, "255": 1}}},
        ),
        (
            "teacher:\n  options: {on: 1.0, width: 3, act: no}\n",
            {"teacher": {"options": {"on": 1.0, "width": 3, "act": "no"}}},
        ),
    ],
)
def test_values_of_a_file_become_what_their_setting_takes(read, text: str, expected: dict):
    assert repr(read(text=text)) == repr(expected)  # 3 equals 3.0


def test_options_of_a_student_can_be_given_one_by_one(read):
    text = "student:\n  options: {width: 3, depth: 2}\n"
    assert read("--student.options.width", "48", text=text) == {
        "student": {"options": {"width": 48, "depth": 2}}
    }
    assert read("--student.options", "{a: x}", text=text) == {"student": {"options": {"a": "x"}}}
    assert override(read(text=text), {"student.options.depth": "1.5", "loss.beta": "1"}) == {
        "student": {"options": {"width": 3, "depth": 1.5}},
        "loss": {"beta": 1.0},
    }


def test_a_later_file_wins(read, tmp_path: Path):
    (tmp_path / "late.yaml").write_text("loss:\n  beta: 0.1\n")
    given = read("--config", str(tmp_path / "late.yaml"), text="loss:\n  beta: 1\n  gamma: 1\n")
    assert given == {"loss": {"beta": 0.1, "gamma": 1.0}}


def test_values_keep_their_types(read):
    text = (
        "dataset:\n  size: [96, 80]\n  root: some/where\n  class_names: [a, b]\n  num_classes: 2\n"
        "cache:\n  levels: []\n"
    )
    config = make_config(
        read("--dataset.val_size", "112", "--student.pretrained", "false", text=text)
    )
    assert (config.dataset.size_hw, config.dataset.val_hw) == ((96, 80), (112, 112))
    assert (config.dataset.root, config.dataset.names, config.cache.levels) == (
        Path("some/where"),
        ["a", "b"],
        [],
    )
    assert config.student.pretrained is False


def test_null_is_the_absent_value_of_an_optional_setting(read):
    assert make_config(read(text="dataset:\n  val_size: null\n  class_names: null\n")) == Config()


def test_merge_leaves_its_arguments_alone():
    base, over = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}
    assert merge(base, over) == {"a": {"b": 3, "c": 2}, "d": 4}
    assert (base, over) == ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4})


def test_config_survives_the_way_through_yaml():
    given = {
        "dataset": {"size": [96, 80], "root": "x/y"},
        "teacher": {"layers": {"low": "layer2"}},
        "run": {"dir": "r"},
    }
    config = make_config(given)
    assert config_from_dict(yaml.safe_load(yaml.safe_dump(config_to_dict(config)))) == config
    assert config != Config()


# --- what is wrong


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("loss.bata", "loss.beta"),
        ("train.batchsize", "train.batch_size"),
        ("teacher.layers.lo", "teacher.layers.low"),
        ("los.beta", "loss.beta"),
        ("augment.view", "augment.views"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest_known_one(refused, wrong: str, nearest: str):
    message = f": {wrong} is unknown, expected {nearest}"
    *sections, name = wrong.split(".")
    text = "".join(f"{'  ' * depth}{word}:\n" for depth, word in enumerate(sections))
    refused(text=f"{text}{'  ' * len(sections)}{name}: 1\n", parts=(message, "--help"))
    refused(f"--{wrong}", "1", parts=(message, "--help"))


def test_unknown_section_is_refused(refused):
    refused(
        text="datasets:\n  foo: 1\n",
        parts=("my.yaml: datasets.foo is unknown", "expected dataset."),
    )
    refused(text="zzz:\n  qq: 1\n", parts=("my.yaml: zzz.qq is unknown", "a known section.name"))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("loss.beta", "strong", "a number"),
        ("train.epochs", "many", "a whole number"),
        ("run.resume", "maybe", "true or false"),
        ("cache.levels", "low", "a list of names, as in [a, b]"),
        ("teacher.arch", "vgg", "fcn_resnet50, fcn_resnet101, deeplabv3_resnet50"),
        ("train.precision", "float16", "auto, float32 or bfloat16"),
    ],
)
def test_value_of_a_wrong_type_is_refused(refused, name: str, value: str, expected: str):
    section, key = name.split(".")
    parts = (f": {name} is {value!r}", "expected", expected, f"change {name}")
    refused(f"--{name}", value, parts=parts)
    refused(text=f"{section}:\n  {key}: {value}\n", parts=parts)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("train.epochs", "010", "'010', expected a whole number, 10 without zeros before it"),
        ("train.seed", "007", "'007', expected a whole number, 7 without zeros before it"),
        ("train.epochs", "1:30", "'1:30', expected a whole number"),
        ("train.epochs", "2.5", "2.5, expected a whole number"),
        ("train.epochs", "1e-1", "0.1, expected a whole number"),
        ("augment.seed", "1e300", "1e+300, expected a whole number"),
        ("train.lr", "1:30.5", "'1:30.5', expected a number"),
        ("augment.views", "0x10", "'0x10', expected a whole number"),
        ("dataset.num_classes", "yes", "'yes', expected a whole number"),
    ],
)
def test_number_in_another_notation_is_refused(refused, name: str, value: str, expected: str):
    section, key = name.split(".")
    refused(text=f"{section}:\n  {key}: {value}\n", parts=(f"my.yaml: {name} is {expected}",))
    if not value[0].isdigit() or "e" not in value and "." not in value:
        refused(f"--{name}", value, parts=(f"{name} is {expected}",))


TEXTS = ["no", "On", "y", "1e3", "1e-3", "010", "1:30", "1_000", "0x1f", "2012-01-01", "~", "null"]
TEXTS += ["=", "<<", ".5", "1.", "+1", "-", "a: b", "# c", "'", "true", "True", "0o17", "1.5e3", ""]


def test_what_is_written_is_read_again_with_the_same_values():
    """As PyYAML wrote it for runs of before, and as it is written now."""
    values = {"texts": TEXTS, "others": [True, False, None, 0, -3, 10**12, 0.1, 1e-5, 1e20, 3.0]}
    assert load_yaml(dump_yaml(values)) == values
    lost = [text for text in TEXTS if load_yaml(yaml.safe_dump([text])) != [text]]
    assert lost == ["1e3", "1e-3", "1.5e3"]  # read as numbers from the first version on
    assert load_yaml(yaml.safe_dump(values["others"])) == values["others"]
    for document in (config_to_dict(Config()), values["others"]):
        assert dump_yaml(document) == yaml.safe_dump(document, sort_keys=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset.size", "true"),
        ("dataset.size", "big"),
        ("dataset.val_size", "[96, x]"),
        ("dataset.root", "3"),
    ],
)
def test_value_of_none_of_several_types_is_refused_in_the_same_form(refused, name: str, value: str):
    section, key = name.split(".")
    refused(
        text=f"{section}:\n  {key}: {value}\n",
        parts=(f"my.yaml: {name} is ", ", expected ", f"; change {name}"),
    )


@pytest.mark.parametrize(
    "name",
    ["loss.beta", "train.epochs", "augment.seed", "dataset.root", "teacher.arch", "cache.levels"],
)
def test_null_where_a_value_is_needed_is_refused(refused, name: str):
    section, key = name.split(".")
    refused(text=f"{section}:\n  {key}: null\n", parts=(name,))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset.num_classes", 1),
        ("dataset.num_classes", 255),
        ("dataset.ignore_index", 256),
        ("dataset.ignore_index", -1),
        ("augment.seed", -1),
        ("augment.seed", 2**63),
        ("augment.views", 0),
        ("augment.scale_min", 0),
        ("augment.scale_min", 3),
        ("augment.scale_max", 0.2),
        ("augment.flip", 1.5),
        ("augment.flip", -0.1),
        ("augment.color_jitter", 1),
        ("teacher.batch_size", 0),
        ("fit.epochs", 0),
        ("fit.batch_size", 1),
        ("fit.lr", 0),
        ("cache.shard_samples", 0),
        ("student.aspp_channels", 7),
        ("loss.alpha", -1),
        ("loss.beta", -0.5),
        ("loss.gamma", ".nan"),
        ("loss.beta", ".inf"),
        ("loss.temperature", 0),
        ("loss.temperature", ".inf"),
        ("train.epochs", 0),
        ("train.batch_size", 1),
        ("train.lr", -1),
        ("train.lr", ".nan"),
        ("train.seed", -1),
        ("loss.pseudo", -1),
        ("loss.pseudo_threshold", 1.5),
    ],
)
def test_value_out_of_range_is_refused(refused, name: str, value: object):
    section, key = name.split(".")
    refused(
        text=f"{section}:\n  {key}: {value}\n",
        parts=("settings: ", f"{section}.", " is ", ", expected ", "; change "),
    )


def test_a_removed_setting_is_taken_if_it_did_nothing_and_else_refused_by_name(read, refused):
    """Files of before name every setting, configs/voc2012_seed.yaml among them."""
    idle = "loss: {beta: 0.2, channel: 0, channel_temperature: 4.0, project: teacher}"
    assert read(text=idle) == {"loss": {"beta": 0.2}}
    words = "expected {}, as it was removed in 0.2.0; leave it out"
    refused(text="loss: {channel: 3}", parts=("loss.channel is 3, " + words.format("0.0"),))
    found = "loss.project is 'student', " + words.format("'teacher'")
    refused(text="loss: {project: student}", parts=(found,))
    for name in ("channel", "channel_temperature", "project"):
        found = f"settings: loss.{name} is unknown, expected to be left out, as it was removed in"
        refused(f"--loss.{name}", "1", parts=(found,))


@pytest.mark.parametrize("name", ["dataset.size", "dataset.val_size"])
@pytest.mark.parametrize("value", ["100", "[96, 100]", "0", "-16", "8", "[0, 16]"])
def test_size_that_is_no_multiple_of_16_is_refused(refused, name: str, value: str):
    refused(f"--{name}", value, parts=(f"settings: {name} is ", "multiples of 16"))


@pytest.mark.parametrize("value", ["[96, 96, 96]", "[96]", "[]"])
def test_size_of_other_than_two_sides_is_refused(refused, value: str):
    refused("--dataset.size", value, parts=("settings: dataset.size is ", "[height, width]"))


def test_sizes_that_are_multiples_of_16_are_taken():
    assert DatasetConfig(size=16).size_hw == (16, 16)
    assert DatasetConfig(size=[32, 48]).val_hw == (32, 48)
    assert DatasetConfig(size=32, val_size=[96, 80]).val_hw == (96, 80)


@pytest.mark.parametrize("names", ["[a, b]", "[" + ", ".join(["a"] * 21) + "]"])
def test_class_names_are_as_many_as_classes_and_different(refused, names: str):
    refused(
        "--dataset.class_names",
        names,
        parts=("settings: dataset.class_names is ['a', ", "21 different names"),
    )


@pytest.mark.parametrize("value", ["[low, low]", "[lo]", "[low, logits]"])
def test_levels_are_known_and_different(refused, value: str):
    refused("--cache.levels", value, parts=("settings: cache.levels is [", "low, mid, high"))


def test_loss_without_any_weight_is_refused(refused):
    refused(
        text="loss:\n  alpha: 0\n  beta: 0\n  gamma: 0\n",
        parts=("settings: loss.alpha is 0", "above 0"),
    )


def test_section_given_as_a_value_is_refused(refused):
    refused(text="train:\n", parts=("my.yaml: train is null, expected a section of names",))
    refused(text="loss: 3\n", parts=("my.yaml: loss is 3, expected a section of names",))
    refused(
        text="teacher:\n  layers: 3\n",
        parts=("my.yaml: teacher.layers is a value", "teacher.layers.NAME"),
    )


# --- the file


@pytest.mark.parametrize("form", ["{}", "loss: {{beta: {}}}", "dataset: {{root: {}}}"])
def test_unsafe_yaml_does_not_run(refused, tmp_path: Path, form: str):
    trace = tmp_path / "executed"
    text = form.format(f"!!python/object/apply:os.mkdir ['{trace}']")
    refused(text=text, parts=("my.yaml: line 1 is a tag",))
    assert not trace.exists()
    yaml.unsafe_load(text)
    assert trace.exists()  # it would have run


ODD_VALUES = [
    "!!bool x", "!!int ''", "!!timestamp x", "!!map [a]", "!!set {a}", "1" + ":1" * 200 + ":1.5",
    "0x" + "f" * 9_000, "2001-99-99", "[" * 400, r'"a\0b"', r'"a\uD800b"', "n" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: value[:12])
@pytest.mark.parametrize("name", ["loss.beta", "run.dir", "dataset.class_names"])
def test_an_odd_value_is_one_line(tmp_path, name, value):
    """In settings and in a grid, at once: a word of 100,000 letters once took 20 s to print."""
    section, _, leaf = name.partition(".")
    for form in (f"{section}: {{{leaf}: {value}}}", f"{section}: {{{leaf}: [{value}, b]}}"):
        path = tmp_path / "my.yaml"
        path.write_text(form)
        for read in (read_settings, lambda path: read_grid([str(path)], None)):
            began_s = time.process_time()  # other programs take none of it
            try:
                escape_line(make_config(read(path)) if read is read_settings else read(path))
            except SettingsError as error:
                check_one_line(error, ": ")
                assert len(escape_line(error)) < 3_000
            assert time.process_time() - began_s < 5


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "content is empty"),
        ("# nothing\n", "content is empty"),
        ("- a\n- b\n", "content is a list"),
        ("hello\n", "content is text"),
        ("3\n", "content is a number"),
        ("loss:\n  beta: [1\n", "line 2 is a bracket that is not closed"),
        ("loss:\n\tbeta: 1\n", "line 2 is indented by a tab"),
        ("loss:\n  beta: 1\n  beta: 2\n", "line 3 is beta twice"),
        ("loss: {}\nloss: {}\n", "line 2 is loss twice"),
        (
            "dataset: data/cv\n",
            "dataset is 'data/cv', expected a section of names, as in `dataset:` and below it "
            "`root: ...`",
        ),
        ("a: &a [*a]\n", "line 1 is an alias"),
        (BOMB, "line 2 is an alias"),
        ("x\0y", "content is a text with control characters"),
        ("? [a, b]\n: 1\n", "line 1 is a list or section in place of a name"),
        ("[" * 5000, "content is nested too deeply"),
        ("# " + "x" * 1_000_000, "size is 1000002 bytes"),
        (b"loss:\n  beta: 1 # \xff\xfe\n", "text is not UTF-8"),
    ],
)
def test_file_that_is_no_plain_yaml_is_refused_by_name(refused, text: str | bytes, found: str):
    refused(text=text, parts=("my.yaml: ", found, "; mend it"))


@pytest.mark.parametrize("text", ["1: 2\n", "loss:\n  1: 2\n"])
def test_names_that_are_numbers_are_refused(refused, text: str):
    refused(text=text, parts=("my.yaml: ",))


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"]])
def test_missing_file_and_folder_are_named(refused, tmp_path: Path, form: list[str]):
    for path, found in ((tmp_path / "none.yaml", "missing"), (tmp_path, "a folder")):
        refused(
            *(word.format(path) for word in form),
            parts=(f"{path}: settings file is {found}, expected a file",),
        )


@pytest.mark.parametrize("argv", [["--loss.beta"], ["stray"], ["--config"]])
def test_incomplete_command_line_is_refused(refused, argv: list[str]):
    refused(*argv, parts=(argv[0], "expected", "--help"))


@pytest.mark.parametrize(
    "argv",
    [
        ["--loss.beta", "1", "--loss.beta", "1"],
        ["--loss.beta=1", "--train.epochs", "2", "--loss.beta=2"],
        ["--run.resume", "--run.resume"],
    ],
)
def test_setting_given_twice_on_a_command_line_is_refused(refused, argv: list[str]):
    name = argv[0].partition("=")[0]
    refused(*argv, parts=(f"{name} is given twice, expected once",))


def test_option_of_a_command_is_refused_with_the_nearest_known_one():
    parser = make_parser()
    parser.add_argument("--dry-run", action="store_true")
    with pytest.raises(SettingsError) as error:
        parser.parse_args(["--dryrun"])
    check_one_line(error, "--dryrun is unknown, expected --dry-run", "--help")


# --- documents


def test_defaults_are_those_of_the_first_configuration():
    stated = flatten(yaml.safe_load((CONFIGS / "voc2012_seed.yaml").read_text()))
    defaults = flatten(config_to_dict(Config()))
    assert stated == {name: defaults[name] for name in stated}
    unstated = [n for n in setting_types() if not n.startswith("run.") and n not in stated]
    assert not unstated, f"state {unstated} with its default in configs/voc2012_seed.yaml"


@pytest.mark.parametrize("name", ["voc2012", "voc2012_seed", "camvid", "demo", "ccp"])
def test_shipped_configuration_is_valid(name: str):
    make_config(read_settings(CONFIGS / f"{name}.yaml"))


def test_each_of_the_59_tags_of_the_photographs_is_one_of_the_11_classes():
    data = make_config(read_settings(CONFIGS / "ccp.yaml")).dataset
    assert sorted(data.class_of_value) == list(range(59))
    assert set(data.class_of_value.values()) == set(range(data.num_classes))


def test_help_names_and_explains_every_setting():
    text = make_parser().format_help()
    words = set(text.replace("=", " ").split())
    names = list(setting_types())
    assert len(names) > 35 and "teacher.layers.low" in names and "run.resume" in names
    assert [name for name in names if f"--{name}" not in words] == []
    assert "Softening T" in text and "--config" in words


def test_names_are_those_of_the_defaults():
    assert list(setting_types()) == list(flatten(config_to_dict(Config())))


@pytest.mark.parametrize(
    ("encoding", "logits", "low"),
    [
        ("exact", "float16", "float16"),
        ("float16", "float16", "float16"),
        ("half", "int8", "int8"),
        ("compact", "int8", "lowrank"),
        ("lowrank", "int8", "lowrank"),
        ({"low": "lowrank"}, "float16", "lowrank"),
        ({"low": "compact", "logits": "half"}, "int8", "lowrank"),
    ],
)
def test_an_encoding_is_a_preset_for_all_answers_or_a_kind_for_each(encoding, logits, low):
    kinds = make_config({"cache": {"encoding": encoding}}).cache.kinds
    assert (kinds["logits"], kinds["low"]) == (logits, low)
    assert set(kinds.values()) <= set(KINDS)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 10**5000, [[float("nan")]]], ids=range(4)
)
def test_options_that_no_run_could_store_are_refused_before_training(value):
    given = {"student": {"arch": "mine:make", "options": {"width": value}}}
    with pytest.raises(SettingsError) as error:
        make_config(given)
    check_one_line(error, "student.options is ", "expected finite values")


def test_as_many_names_as_classes_with_none_twice():
    given = {"dataset": {"num_classes": 2, "class_names": ["a", "b", "b"]}}
    with pytest.raises(SettingsError, match="2 different names"):
        make_config(given)


def test_making_settings_takes_little_memory():
    """Each command and each manifest makes them, some several times: a table of all values that a
    mask may hold made a small build three times as slow.
    """
    make_config({})
    tracemalloc.start()
    try:
        make_config({"dataset": {"label_map": {"0": 0}}})
        most_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most_bytes < 300_000
