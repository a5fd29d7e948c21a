"""Situations of settings, checkpoints, caches and runs that were moved or shared, and the shell."""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from pathlib import Path

import torch

from tests.situations.place import rows, save_weights
from tests.support.helpers import Trap

SETTINGS = rows(
    ("class names no and yes", lambda: "dataset: {num_classes: 2, class_names: [no, yes]}"),
    ("compile: on", lambda: "train: {compile: on}"),
    ("track: none", lambda: "run: {track: none}"),
    ("resume: yes", lambda: "run: {resume: yes}"),
    ("epochs: 1e2", lambda: "train: {epochs: 1e2}"),
    ("epochs: 3.0", lambda: "train: {epochs: 3.0}"),
    ("epochs: 010", lambda: "train: {epochs: 010}", "'010', expected a whole number, 10 without"),
    ("epochs: 1:30", lambda: "train: {epochs: 1:30}", "'1:30', expected a whole number"),
    ("epochs: 30 epochs", lambda: "train: {epochs: 30 epochs}", "'30 epochs', expected a whole"),
    ("epochs with a comma", lambda: "train: {epochs: '1,000'}", "'1,000', expected a whole number"),
    ("lr with a comma for the point", lambda: "train: {lr: '0,001'}", "'0,001', expected a number"),
    ("lr: 1e-3", lambda: "train: {lr: 1e-3}"),
    ("lr: .001", lambda: "train: {lr: .001}"),
    ("a negative lr", lambda: "train: {lr: -0.1}", "train.lr is -0.1, expected a number above 0"),
    ("device: gpu", lambda: "train: {device: gpu}"),  # refused where a device is chosen
    ("a size that is no multiple", lambda: "dataset: {size: 500}", "multiples of 16"),
    ("a size as text", lambda: "dataset: {size: 512x512}", "dataset.size is '512x512'"),
    ("height and width", lambda: "dataset: {size: [480, 640]}"),
    ("a path in quotes with spaces", lambda: "dataset: {root: 'my data/voc'}"),
    ("a path in the home", lambda: "dataset: {root: ~/data}"),
    ("a path in $HOME", lambda: "cache: {path: $HOME/caches/voc}"),
    (
        "a path in a variable that is not set",
        lambda: "cache: {path: $NOWHERE/voc}",
        "a variable that is set",
    ),
    ("a path of Windows", lambda: "dataset: {root: C:\\data\\voc}"),
    ("a path with a scheme", lambda: "cache: {path: http://host/voc}", "s3://"),
    ("a path with one slash", lambda: "cache: {path: s3:/bucket/voc}", "with two slashes"),
    (
        "a password in an address",
        lambda: "cache: {path: 's3://me:secret@host/voc'}",
        r"s3://\*\*\*@host/voc.*without a password",
    ),
    ("null for a path", lambda: "cache: {path: ~}", "cache.path is null"),
    ("an empty value", lambda: "train:\n  epochs:\n", "train.epochs is null, expected a whole"),
    ("an empty section", lambda: "train:\n", "train is null, expected a section"),
    ("an empty file", lambda: "", "content is empty"),
    ("a list in place of sections", lambda: "- train\n- loss\n", "content is a list"),
    ("text in place of sections", lambda: "hello\n", "content is text"),
    ("a number in place of sections", lambda: "3\n", "content is a number"),
    ("tabs", lambda: "train:\n\tepochs: 3\n", "line 2 is indented by a tab"),
    (
        "a bracket that is not closed",
        lambda: "dataset: {size: [32, 32\n",
        "line 1 is a bracket that is not closed",
    ),
    (
        "a quote that is not closed",
        lambda: "dataset: {root: 'voc\n",
        "line 1 is a quote that is not closed",
    ),
    ("a colon without a space", lambda: "train:\n  epochs:3\n", "train is 'epochs:3'"),
    (
        "a colon within a value",
        lambda: "dataset:\n  root: data: voc\n",
        "line 2 is a value with a colon in it",
    ),
    (
        "a name that is not indented",
        lambda: "train:\nepochs: 3\n",
        "train is null, expected a section",
    ),
    ("names indented by different spaces", lambda: "train:\n  epochs: 3\n   lr: 1\n", "line 3 is "),
    ("a name twice", lambda: "train: {epochs: 3, epochs: 4}", "epochs twice"),
    ("a section twice", lambda: "train: {epochs: 3}\ntrain: {lr: 1}\n", "train twice"),
    ("an anchor and an alias", lambda: "train: &a {lr: 1}\nfit: *a\n", "line 2 is an alias"),
    ("a tag of Python", lambda: "train: !!python/tuple [1]\n", "line 1 is a tag"),
    ("a tag of one's own", lambda: "train: {epochs: !env EPOCHS}\n", "line 1 is a tag"),
    ("a merge key", lambda: "train: {<<: {lr: 1}}\n", "train.<<.lr is unknown"),
    ("two documents", lambda: "train: {lr: 1}\n---\nfit: {lr: 1}\n", "line 2 is a second document"),
    ("JSON", lambda: '{"train": {"epochs": 3}}'),
    ("a byte order mark", lambda: "\ufefftrain: {epochs: 3}\n"),
    ("line ends of Windows", lambda: "train:\r\n  epochs: 3\r\n"),
    ("a misspelt name", lambda: "train: {epoch: 3}", "train.epoch is unknown, expected train.epo"),
    ("a misspelt section", lambda: "trian: {epochs: 3}", "expected train.epochs"),
    ("a name with a hyphen", lambda: "train: {batch-size: 3}", "expected train.batch_size"),
    ("a dotted name in a file", lambda: "train.epochs: 3\n"),
    ("a name of another section", lambda: "loss: {epochs: 3}", "loss.epochs is unknown"),
    ("num_classes in quotes", lambda: "dataset: {num_classes: '21'}"),
    (
        "num_classes as text",
        lambda: "dataset: {num_classes: all}",
        "'all', expected a whole number",
    ),
    ("levels as one word", lambda: "cache: {levels: high}", "a list of names"),
    ("no levels", lambda: "cache: {levels: []}"),
    ("encoding for a level", lambda: "cache: {encoding: {high: int8}}"),
    ("a level that is not there", lambda: "cache: {encoding: {top: int8}}", "cache.encoding is"),
    ("a seed below 0", lambda: "train: {seed: -1}", "train.seed is -1"),
    ("an option of NaN", lambda: "student: {arch: 'a:b', options: {x: .nan}}", "finite values"),
    ("a student that is a file", lambda: "student: {arch: model.py}", "package.module:function"),
    ("a teacher that is nearly known", lambda: "teacher: {arch: fcn_resnet5}", "fcn_resnet50"),
    ("words: an option without a value", lambda: ["--train.epochs"], "has no value, expected N"),
    ("words: one dash", lambda: ["-train.epochs", "3"], "'-train.epochs' is no setting"),
    ("words: a dash that is no ASCII", lambda: ["\u2014train.epochs", "3"], "is no setting"),
    ("words: name=value", lambda: ["train.epochs=3"], "'train.epochs=3' is no setting"),
    ("words: an option twice", lambda: ["--train.lr", "1", "--train.lr", "2"], "given twice"),
    ("words: a misspelt option", lambda: ["--train.epoch", "3"], "expected train.epochs"),
    ("words: an option without its section", lambda: ["--epochs", "3"], "--epochs is unknown"),
    ("words: a file that is missing", lambda: ["--config", "none.yaml"], "is missing"),
    ("words: a folder for a file", lambda: ["--config", "."], "settings file is a folder"),
    ("words: a negative number", lambda: ["--train.lr", "-1"], "above 0"),
    ("words: a list with spaces", lambda: ["--cache.levels", "[low, high]"]),
    ("words: a switch alone", lambda: ["--run.resume"]),
    ("words: a switch with no", lambda: ["--run.baseline", "no"]),
    ("words: true in capitals", lambda: ["--run.resume", "TRUE"]),
)


def _prefixed(prefix: str):
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


def _wrapped(name: str):
    return lambda state: {name: state, "epoch": 3}


def _with_nan(state: dict) -> dict:
    name = next(iter(state))
    return {**state, name: state[name] * torch.nan}


def _weights(change=dict, **more):
    """A checkpoint, and the settings of a teacher with it."""
    return lambda: {"weights": str(save_weights("teacher.pth", change, **more))}


def _bytes(data: bytes):
    return lambda: Path("teacher.pth").write_bytes(data) and {"weights": "teacher.pth"}


def _trap() -> dict:
    torch.save({"model": Trap(Path("trace"))}, "teacher.pth")
    return {"weights": "teacher.pth"}


CHECKPOINTS = rows(
    ("a state dict", _weights()),
    *(
        (f"a state dict under {name}", _weights(_wrapped(name)), f"tensors under '{name}'$")
        for name in ("model", "model_state", "model_ema", "net", "teacher")
    ),
    *(
        (
            f"names that begin with {prefix}",
            _weights(_prefixed(prefix)),
            "tensors without the prefix",
        )
        for prefix in ("module.", "model.", "_orig_mod.", "module._orig_mod.")
    ),
    (
        "the args of a training script beside it",
        _weights(lambda state: {"model": state, "args": Namespace(lr=0.1), "epoch": 9}),
        "tensors under 'model'$",
    ),
    ("a state dict under state_dict", _weights(_wrapped("state_dict"))),
    (
        "weights in half precision",
        _weights(
            lambda state: {n: v.half() if v.is_floating_point() else v for n, v in state.items()}
        ),
    ),
    (
        "no auxiliary head",
        _weights(lambda state: {n: v for n, v in state.items() if not n.startswith("aux")}),
    ),
    (
        "no counters of BatchNorm",
        _weights(
            lambda state: {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
        ),
    ),
    (
        "a model and its average",
        _weights(lambda state: {"model": state, "model_ema": dict(state)}),
        "weights_key",
    ),
    (
        "the average, chosen",
        lambda: {
            "weights": str(
                save_weights("teacher.pth", lambda s: {"model": s, "model_ema": dict(s)})
            ),
            "weights_key": "model_ema",
        },
        "tensors under 'model_ema'$",
    ),
    (
        "a key that is not there",
        lambda: {"weights": str(save_weights("teacher.pth")), "weights_key": "ema"},
        "weights_key",
    ),
    ("other classes", _weights(classes=5), "number of classes is 5, expected 3"),
    (
        "a class for the background left out",
        _weights(classes=2),
        "number of classes is 2, expected 3",
    ),
    (
        "a backbone alone",
        _weights(lambda state: {n: v for n, v in state.items() if n.startswith("backbone.")}),
        "teacher is a ResNet alone, without a head",
    ),
    (
        "a layer that is missing",
        _weights(lambda state: {n: v for n, v in state.items() if "layer2" not in n}),
        "tensor backbone.layer2[.0-9a-z_]* is missing, expected",
    ),
    ("a weight that is not finite", _weights(_with_nan), "backbone.*not finite"),
    (
        "a file that is missing",
        lambda: {"weights": "none.pth"},
        "none.pth: teacher.weights is missing, expected a file",
    ),
    (
        "a misspelt name of torchvision",
        lambda: {"weights": "COCO_WITH_VOC_LABEL"},
        "teacher.weights is missing, expected a file; .*torchvision weights name",
    ),
    ("an empty file", _bytes(b"\n"), "the file is empty"),
    ("a page of HTML", _bytes(b"<html>not found</html>"), "it is a page of HTML"),
    (
        "a pointer of Git LFS",
        _bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "it is a pointer of Git LFS",
    ),
    (
        "a folder",
        lambda: (
            Path("teacher.weights is a folder, expected a file").mkdir()
            or {"weights": "teacher.pth"}
        ),
        "teacher.pth",
    ),
    ("code in a pickle", _trap, "it holds [a-z.]+, which is code, and code is not run"),
    (
        "a list of tensors",
        _weights(lambda state: list(state.values())),
        "teacher.weights is a list, expected a state dict",
    ),
    (
        "a whole module",
        _weights(lambda state: torch.nn.Linear(2, 2)),
        "it holds .*Linear, which is code",
    ),
    (
        "an optimiser alone",
        _weights(lambda state: {"optimizer": {"state": {}}}),
        "expected a state dict of tensors",
    ),
    (
        "half a file",
        lambda: _halve(save_weights("teacher.pth")),
        "it is damaged, cut off, or not of torch.save",
    ),
    (
        "another architecture in the settings",
        lambda: {"weights": str(save_weights("teacher.pth")), "arch": "deeplabv3_resnet50"},
        "DeepLabV3",
    ),
    (
        "a link to a checkpoint",
        lambda: (
            Path("link.pth").symlink_to(save_weights("teacher.pth").resolve())
            or {"weights": "link.pth"}
        ),
    ),
    ("a name with spaces", lambda: {"weights": str(save_weights("my teacher (1).pth"))}),
)


def _halve(path: Path) -> dict:
    path.write_bytes(path.read_bytes()[:5000])
    return {"weights": str(path)}


def student(*words: str) -> tuple[str, list[str]]:
    return "train_student", list(words)


def teacher(*words: str) -> tuple[str, list[str]]:
    return "cache_teacher", list(words)


def after(change, command: tuple):
    """A command, after something was done to the files."""
    return lambda: (change(), command)[1]


TRAIN = student("--config", "given.yaml", "--run.dir", "new/kd", "--run.baseline", "false")
BUILD = teacher("--config", "given.yaml")
MOVED = rows(
    (
        "a cache that was renamed",
        after(lambda: Path("cache").rename("other"), teacher("verify", "other", "--data")),
    ),
    (
        "a cache in a folder with spaces",
        after(lambda: Path("cache").rename("my cache"), teacher("info", "my cache")),
    ),
    (
        "a cache through a link",
        after(lambda: Path("link").symlink_to("cache"), teacher("verify", "link")),
    ),
    (
        "a cache that was copied",
        after(lambda: shutil.copytree("cache", "copy"), teacher("verify", "copy", "--data")),
    ),
    ("a path with a slash at its end", after(lambda: None, teacher("info", "cache/"))),
    (
        "a folder that is no cache",
        after(lambda: Path("x").mkdir(), teacher("info", "x")),
        "manifest.json is missing, expected a kdcache cache",
    ),
    (
        "a file that is no cache",
        after(lambda: Path("x").write_text("x"), teacher("info", "x")),
        "x: file is no HDF5 file, expected a packed cache",
    ),
    (
        "a cache that is missing",
        after(lambda: None, teacher("info", "none")),
        "none: manifest.json is missing",
    ),
    (
        "the folder of caches in place of one",
        after(lambda: Path("all").mkdir(), teacher("verify", "all")),
        "all: manifest.json is missing",
    ),
    (
        "a manifest that was edited",
        after(lambda: Path("cache/manifest.json").write_text("{}"), teacher("info", "cache")),
        "manifest.json",
    ),
    (
        "a shard that is lost",
        after(
            lambda: next(
                path for path in Path("cache/train").rglob("[0-9]*") if path.is_file()
            ).unlink(),
            teacher("verify", "cache"),
        ),
        "DAMAGED in 1 places",
    ),
    ("the data set moved, and the cache is read", after(lambda: shutil.rmtree("data"), TRAIN)),
    (
        "the data set moved, and the cache is built",
        after(lambda: shutil.rmtree("data"), BUILD),
        "VOC2012: folder is missing",
    ),
    ("a picture changed after the cache was built", after(lambda: _repaint(), BUILD)),
    ("building what is complete", after(lambda: None, BUILD)),
    (
        "more views than before",
        after(lambda: None, (BUILD[0], [*BUILD[1], "--augment.views", "3"])),
    ),
    (
        "another size in an old folder",
        after(lambda: None, (BUILD[0], [*BUILD[1], "--dataset.size", "48"])),
        "rebuild it in another folder",
    ),
    ("a cache whose files may not be written", after(lambda: None, teacher("gc", "cache"))),
    (
        "training into a folder that is in use",
        after(lambda: None, student("--config", "given.yaml", "--run.dir", "run/kd")),
        "run.dir is in use.*--run.resume",
    ),
    (
        "going on with a finished run",
        after(
            lambda: None, student("--config", "given.yaml", "--run.dir", "run/kd", "--run.resume")
        ),
    ),
    (
        "training into a folder of photographs",
        after(lambda: (Path("new/kd").mkdir(parents=True), Path("new/kd/a.jpg").touch()), TRAIN),
        "run.dir is in use",
    ),
    (
        "a run that was renamed",
        after(lambda: Path("run").rename("old"), student("report", "old/kd")),
    ),
    (
        "a run whose cache was renamed",
        after(
            lambda: Path("cache").rename("other"),
            student("report", "run/kd", "--cache.path", "other"),
        ),
    ),
    (
        "a run whose cache is gone",
        after(lambda: shutil.rmtree("cache"), student("report", "run/kd")),
        "cache",
    ),
    (
        "a run that was shared without its cache",
        after(
            lambda: shutil.rmtree("cache"),
            student("predict", "run/kd", "photo.jpg", "--out", "out"),
        ),
    ),
    (
        "a run without its settings",
        after(
            lambda: Path("run/kd/config.yaml").unlink(), student("predict", "run/kd", "photo.jpg")
        ),
        "config.yaml",
    ),
    (
        "a run without its checkpoint",
        after(
            lambda: Path("run/kd/student_kd_best.pth").unlink(),
            student("predict", "run/kd", "photo.jpg"),
        ),
        "student_kd_best.pth",
    ),
    (
        "a run whose metrics were edited",
        after(
            lambda: Path("run/kd/metrics.jsonl").write_text("{}\n"), student("compare", "run/kd")
        ),
        "finished runs is none, expected one or more",
    ),
    ("comparing a run alone", after(lambda: None, student("compare", "run/kd"))),
    ("comparing what is no run", after(lambda: None, student("compare", "data")), "finished runs"),
    (
        "predicting a folder without pictures",
        after(lambda: Path("x").mkdir(), student("predict", "run/kd", "x")),
        "x",
    ),
    (
        "predicting a picture that is missing",
        after(lambda: None, student("predict", "run/kd", "none.jpg")),
        "none.jpg",
    ),
    (
        "predicting text",
        after(lambda: Path("x.jpg").write_text("x"), student("predict", "run/kd", "x.jpg")),
        "x.jpg",
    ),
    (
        "a page into a folder that is missing",
        after(lambda: None, student("compare", "run/kd", "--html", "none/page.html")),
        "none/page.html",
    ),
    (
        "a page with another ending",
        after(lambda: None, student("compare", "run/kd", "--html", "run/kd/student_kd_best.pth")),
        ".html",
    ),
    ("fidelity without its teacher", after(lambda: None, teacher("fidelity", "cache")), "weights"),
)


def _repaint() -> None:
    from PIL import Image

    photo = sorted(Path("data").rglob("JPEGImages/*.jpg"))[0]
    with Image.open(photo) as picture:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photo)


ODD = os.fsdecode(b"caf\xe9")
SHELL = rows(
    ("no words", lambda: teacher("info"), "PATH is missing"),
    ("a command that is misspelt", lambda: teacher("verfy", "cache"), "write verify"),
    ("a command of the other program", lambda: teacher("compare", "run"), "command is 'compare'"),
    ("a word too many", lambda: teacher("info", "cache", "x"), "'x' is one word too many"),
    (
        "an option of another command",
        lambda: teacher("info", "cache", "--data"),
        "--data is unknown",
    ),
    ("a number that is none", lambda: teacher("view", "cache", "--samples", "many"), "'many'"),
    ("a number of nothing", lambda: teacher("view", "cache", "--samples", "0"), "from 1 to 1000"),
    ("a choice that is none", lambda: teacher("view", "cache", "--split", "test"), "val, train or"),
    ("a cache in the home that is not there", lambda: teacher("info", "~/none"), "/none"),
    ("a user that is not there", lambda: teacher("info", "~nobody_here/c"), "a user who is there"),
    ("bytes that are no text in a path", lambda: teacher("info", ODD), "manifest.json is missing"),
    (
        "a cache whose name is no text",
        after(lambda: Path("cache").rename(ODD), teacher("verify", ODD, "--data")),
    ),
    ("a run whose name is no text", lambda: student(*TRAIN[1][:3], f"new/{ODD}", *TRAIN[1][4:])),
    (
        "a picture whose name is no text",
        after(
            lambda: shutil.copy("photo.jpg", f"{ODD}.jpg"),
            student("predict", "run/kd", f"{ODD}.jpg", "--out", "out"),
        ),
    ),
    ("a page whose name is no text", lambda: teacher("view", "cache", "--out", f"{ODD}.html")),
    (
        "a data set whose name is no text",
        after(lambda: Path("data").rename(ODD), (BUILD[0], [*BUILD[1], "--dataset.root", ODD])),
    ),
    ("control codes in a name", lambda: teacher("info", "a\x1b[2J\nb"), r"a\\x1b\[2J\\nb"),
    (
        "a NUL in a setting",
        lambda: (TRAIN[0], [*TRAIN[1], "--student.arch", "a\0"]),
        "student.arch",
    ),
    ("a name that is too long", lambda: teacher("info", "x" * 5000), "File name too long|missing"),
    ("--help", lambda: teacher("--help")),
)
