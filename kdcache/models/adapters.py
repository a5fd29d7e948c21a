"""Teachers of other libraries: segmentation_models_pytorch (extra smp) and transformers.

No code of a checkpoint or of a hub is run. Letters: N batch, H, W height and width.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from kdcache.config import TeacherConfig
from kdcache.disk import MOST_DOCUMENT_BYTES, read_plain
from kdcache.errors import (
    KdcacheError,
    Phrase,
    SettingsError,
    TeacherError,
    describe,
    one_line,
    show_value,
)
from kdcache.models.checkpoints import is_counter
from kdcache.models.own_code import TEACHER, refuse_code
from kdcache.schema import fields, flag, list_of, maybe, number, parse_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SMP_STAGES = {f"layer{n}": f"encoder[{n + 1}]" for n in range(1, 5)}  # strides 4, 8, 16, 32
SEGFORMER_STAGES = {f"layer{n}": f"[hidden_states][{n - 1}]" for n in range(1, 5)}
EXTRAS = {"segmentation_models_pytorch": "smp", "timm": "timm", "transformers": "transformers"}
_THREE = maybe(list_of(number(), least=3, most=3))
_NORMALISATION = {"image_mean": _THREE, "image_std": _THREE, "do_normalize": maybe(flag)}
LOADING = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
"""Options of timm, also by way of smp's encoders, that read a file or fetch one: a cache or a run
stores its options, and what is stored chooses no file."""
VOLATILE = ("transformers_version", "dtype", "architectures", "id2label", "label2id")
"""Of a config of transformers: they decide no number that a network gives."""


def build_smp(config: TeacherConfig, num_classes: int) -> nn.Module:
    """The model that `smp:NAME` names, without weights and without its last upsampling.

    Raises: SettingsError if the library is missing, or has no such model, encoder or option.
    """
    check_installed("segmentation_models_pytorch", config.arch)
    import segmentation_models_pytorch as smp

    name, known = config.arch.partition(":")[2], smp.MODEL_ARCHITECTURES_MAPPING
    if name.lower() not in known:
        names = {word: kind.__name__ for word, kind in known.items()}
        near = difflib.get_close_matches(name.lower(), names, n=1)
        expected = f"smp:{names[near[0]]}" if near else "smp:" + ", ".join(names.values())
        raise refuse_code(config.arch, "no model", expected, field=TEACHER)
    refused = ("encoder_weights", "activation", *LOADING)
    expected = "none: weights are teacher.weights, logits raw"
    check_options(config.arch, config.options, refused, expected=expected, field=TEACHER)
    with explain(config.arch, "options of that model"):
        module = smp.create_model(
            name.lower(), encoder_weights=None, classes=num_classes, **config.options
        )
    for place, part in enumerate(module.segmentation_head):
        if isinstance(part, nn.Upsample):  # UpsamplingBilinear2d is one
            module.segmentation_head[place] = nn.Identity()
    return module


def build_transformers(
    config: TeacherConfig,
    num_classes: int,
    state: Mapping[str, Tensor] | None,
    *,
    is_fresh: bool = False,
) -> nn.Module:
    """The model that `transformers:NAME_OR_FOLDER` names, with its own weights or those of `state`.

    Args:
        is_fresh: with drawn weights instead; then only its config is read.

    Raises: SettingsError if the library is missing, or the model is for another task; TeacherError
        if it has other classes, or lacks weights.
    """
    settings = read_transformers(config)
    name = config.arch.partition(":")[2]
    import transformers

    kinds = transformers.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
    if type(settings) not in kinds:
        expected = f"one of {', '.join(sorted(kind.model_type for kind in kinds))}"
        raise refuse_code(config.arch, f"a {settings.model_type}", expected, field=TEACHER)
    _check_classes(config, settings.num_labels, num_classes)
    _check_normalisation(config, name)
    if is_fresh:
        with explain(config.arch, "a config that a model can be built from"), _quiet():
            return kinds[type(settings)](settings).float()
    with explain(config.arch, "weights of that model"), _quiet():
        module, facts = kinds[type(settings)].from_pretrained(
            name if state is None else None,
            config=settings,
            state_dict=None if state is None else dict(state),
            output_loading_info=True,
            use_safetensors=True,
        )
    _check_whole(facts, where=config.arch if state is None else config.weights)
    return module.float()


def _check_classes(config: TeacherConfig, found: int, expected: int) -> None:
    if found != expected:
        count = Phrase(f"{found} with background" if found == expected + 1 else found)
        cure = "set dataset.num_classes, or give a model of your classes"
        field = "number of classes"
        raise TeacherError(
            describe(config.arch, field=field, found=count, expected=expected, cure=cure)
        )


def _check_whole(facts: Mapping, *, where: str) -> None:
    """Check what transformers says of loading weights: else it draws those that are missing."""
    lacks = sorted(x for x in facts["missing_keys"] if not is_counter(x))
    if lacks or facts["unexpected_keys"]:
        tensor = (lacks or sorted(facts["unexpected_keys"]))[0]
        found = Phrase("missing" if lacks else "one too many")
        expected, cure = Phrase("weights of the whole model"), "give those of a fitted one"
        raise TeacherError(
            describe(where, field=f"tensor {tensor}", found=found, expected=expected, cure=cure)
        )


def read_transformers(config: TeacherConfig) -> PretrainedConfig:
    """The config of `transformers:NAME_OR_FOLDER`. Raises SettingsError."""
    check_installed("transformers", config.arch)
    from transformers import AutoConfig

    name, expected = config.arch.partition(":")[2], "a folder with config.json"
    if (name.startswith((".", "/", "~")) or name.count("/") != 1) and not Path(name).is_dir():
        raise refuse_code(config.arch, "no folder", f"{expected}, or OWNER/MODEL", field=TEACHER)
    if Path(name).is_dir():
        _check_alone(config, Path(name) / "config.json")
    with explain(config.arch, f"{expected}, or a name of the Hugging Face hub"), _quiet():
        return AutoConfig.from_pretrained(name, trust_remote_code=False)


def _check_alone(config: TeacherConfig, path: Path) -> None:
    """Check that a model in a folder names no other one, which would be fetched or read.

    Raises: SettingsError.
    """
    named = _read_facts(config, path)
    for name in ("backbone", "use_pretrained_backbone"):
        if named.get(name):
            expected = "a model that is whole in its folder"
            found = f"naming {name} {show_value(named[name])}"
            raise refuse_code(config.arch, found, expected, field=TEACHER)


def _read_facts(config: TeacherConfig, path: Path) -> dict:
    """A document of a model of transformers; {} if it is not there. Raises SettingsError."""
    expected = f"{path.name} of names with values"
    with explain(config.arch, expected):
        if not path.is_file():
            return {}
        facts = parse_json(read_plain(path, most_bytes=MOST_DOCUMENT_BYTES))
        fields({}, _NORMALISATION)(facts)
        return facts


def hash_transformers(config: TeacherConfig) -> str:
    """The sha256 of what the config says of the network's arithmetic."""
    facts = read_transformers(config).to_diff_dict()
    kept = {name: value for name, value in facts.items() if name not in VOLATILE}
    return sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def check_installed(module: str, arch: str, *, field: str = TEACHER) -> None:
    """Check that the library of an adapter is there. Raises SettingsError."""
    if importlib.util.find_spec(module) is None:
        expected, cure = (
            Phrase(f"{module} to be installed"),
            f"`pip install 'kdcache[{EXTRAS[module]}]'`",
        )
        raise SettingsError(
            describe("settings", field=field, found=arch, expected=expected, cure=cure)
        )


def check_options(
    arch: str, options: Mapping, refused: Sequence[str], *, expected: str, field: str
) -> None:
    """Check that options of a library have none of these names, and name no hub or folder.

    Raises: SettingsError.
    """
    for name in options:
        if name in refused:
            raise refuse_code(arch, f"given {name}", expected, field=field)
    for name in (arch.partition(":")[2], *options.values()):
        if isinstance(name, str) and ":" in name:  # hf-hub: and local-dir: of timm
            found, expected = f"naming {name}", "a name that the library itself has"
            raise refuse_code(arch, found, expected, field=field)


@contextmanager
def explain(arch: str, expected: str, *, field: str = TEACHER) -> Iterator[None]:
    """Turn what a library raises into one line. Raises SettingsError."""
    try:
        yield
    except KdcacheError:
        raise
    except (Exception, SystemExit) as error:  # whatever another library meets
        found = f"failing ({one_line(error, named=True)})"
        raise refuse_code(arch, found, expected, field=field) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and reports of transformers; what matters in them is checked here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _check_normalisation(config: TeacherConfig, name: str) -> None:
    """Check that images are normalised as the model's preprocessor_config.json says, if it does."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        facts, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        return
    with explain(config.arch, "a preprocessor_config.json with image_mean and image_std"):
        fields({}, _NORMALISATION)(facts)
    asked = facts.get("do_normalize", True)
    wanted = {
        "mean": facts.get("image_mean") if asked else [0.0, 0.0, 0.0],
        "std": facts.get("image_std") if asked else [1.0, 1.0, 1.0],
    }
    for field, values in wanted.items():
        found = getattr(config, field)
        if values is not None and list(values) != found:
            where = Path(name) / "preprocessor_config.json"
            raise SettingsError(
                describe(
                    where,
                    field=f"teacher.{field}",
                    found=found,
                    expected=list(values),
                    cure=f"set teacher.{field} '{list(values)}'",
                )
            )
