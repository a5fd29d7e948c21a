"""Trust: whatever a document says, well sealed or not, a cache gives its numbers or a typed error,
soon and in little memory.
"""

import hashlib
import json
import resource
import shutil
import time
from collections.abc import Iterator
from copy import deepcopy
from functools import partial, reduce
from operator import getitem
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kdcache.cache.layout import SPLITS
from kdcache.cache.manifest import read_manifest
from kdcache.cache.settings import stored_config
from kdcache.cache.verify import verify_cache
from kdcache.config.parser import setting_types
from kdcache.errors import CacheError, KdcacheError
from kdcache.report.cache_text import (
    describe_cache,
    describe_findings,
    format_findings,
    format_info,
)
from kdcache.seals import seal_json as seal_document
from kdcache.storage import open_storage
from kdcache.training.run_folder import read_run_settings
from kdcache.training.settings import resolve_config
from tests.support.effort import FULL, get_settings, quick_and_full
from tests.support.helpers import check_one_line
from tests.support.reading import read_all

MOST_S, MOST_BYTES = 10.0, 1 << 30
SEALED = ("manifest.json", "commits/train-v0001-g00000.json", "commits/val-v0000-g00000.json")
OPEN = ("zarr.json", "train/zarr.json", "train/mid/zarr.json")

EXTREME = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    4,
    10_000,
    65_536,
    2**31,
    2**63,
    10**300,
    -(10**300),
    0.0,
    1.5,
    -0.0,
    1e308,
    "",
    "0",
    "x\ny",
    "\x00",
    "\ud800",
    "../../x",
    "a" * 10_000,
    "0" * 64,
    [],
    {},
    [0],
    [[]],
    [None] * 1000,
    {"": {}},
    {"a\nb": "\r\n"},
]
VALUES = st.sampled_from(EXTREME) | st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """Whoever takes much more than is in use now gets a MemoryError, which is no typed error."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MOST_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def root(whole_root, tmp_path) -> Path:
    """A finished cache of this test alone."""
    return Path(shutil.copytree(whole_root, tmp_path / "cache"))


@pytest.fixture
def truth(root) -> dict:
    """What it holds."""
    return {split: read_all(root, split) for split in SPLITS}


def read_unsealed(path: Path) -> dict:
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}


def find_places(value: object) -> Iterator[tuple[dict | list, object]]:
    """Every (container, key) of a document."""
    keys = (
        list(value)
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    )
    for key in keys:
        yield value, key
        yield from find_places(value[key])


def draw_value(data: st.DataObject) -> object:
    """Of its own: what was drawn may be changed later."""
    return deepcopy(data.draw(VALUES))


def mutate(document: dict, data: st.DataObject) -> dict:
    """Replace, remove, add or nest a value somewhere, once to three times."""
    document = deepcopy(document)
    for _ in range(data.draw(st.integers(1, 3))):
        places = list(find_places(document))
        container, key = places[data.draw(st.integers(0, len(places) - 1))]
        how = data.draw(st.sampled_from(["replace", "replace", "replace", "delete", "add", "nest"]))
        if how == "replace":
            container[key] = draw_value(data)
        elif how == "delete":
            del container[key]
        elif how == "nest":
            container[key] = data.draw(st.sampled_from([[container[key]], {"a": container[key]}]))
        elif isinstance(container, dict):
            container[data.draw(st.text(max_size=3))] = draw_value(data)
        else:
            container.append(draw_value(data))
    return document


def check_all(root: Path, truth: dict) -> set[str]:
    """Everything that looks at a cache tells the truth or ends soon in a typed error of one line;
    returns what failed.
    """
    failed, began_s = set(), time.monotonic()
    reads = {split: partial(read_all, split=split) for split in SPLITS}
    for name, look in {
        "verify": _verify,
        "info": _describe,
        "settings": _read_settings,
        **reads,
    }.items():
        try:
            found = look(root)
            assert name not in truth or found.items() <= truth[name].items()
        except KdcacheError as error:
            check_one_line(error)
            assert isinstance(error, CacheError) or name == "settings"
            failed.add(name)
    assert time.monotonic() - began_s < MOST_S
    return failed


def _verify(root: Path) -> None:
    findings = verify_cache(root, data=True)
    json.dumps(describe_findings(findings, open_storage(root)), indent=2)
    format_findings(findings, open_storage(root))


def _describe(root: Path) -> None:
    facts = describe_cache(root)
    json.dumps(facts, indent=2)
    format_info(facts)


def _read_settings(root: Path) -> None:
    stored_config(root, read_manifest(root), {})
    resolve_config(root, read_manifest(root), {})


@quick_and_full
@pytest.mark.parametrize("name", SEALED)
def test_a_sealed_document_of_nonsense_is_a_typed_error(root, truth, name, effort):
    path, whole, document = root / name, (root / name).read_bytes(), read_unsealed(root / name)

    @get_settings(effort, share=0.25)
    @given(st.data())
    def change(data):
        (path).write_bytes(seal_document(mutate(document, data)))
        check_all(root, truth)

    change()
    path.write_bytes(whole)
    assert check_all(root, truth) == set()


@quick_and_full
@pytest.mark.parametrize("name", SEALED[:2])
def test_any_value_may_be_text_of_two_lines(root, truth, name, effort):
    document = read_unsealed(root / name)
    places = list(find_places(document))
    for container, key in places if effort == FULL else places[::4]:
        kept, container[key] = container[key], "x\ny"
        (root / name).write_bytes(seal_document(document))
        check_all(root, truth)
        container[key] = kept


JSON = VALUES.map(json.dumps).map(str.encode)


@quick_and_full
@pytest.mark.parametrize("name", [*SEALED, *OPEN])
def test_bytes_that_are_no_document_are_a_typed_error(root, truth, name, effort):
    path, whole = root / name, (root / name).read_bytes()

    @get_settings(effort, share=0.1)
    @given(
        st.binary(max_size=200)
        | JSON
        | st.tuples(st.integers(0, len(whole)), st.binary(min_size=1, max_size=8))
    )
    def change(data):
        path.write_bytes(
            data if isinstance(data, bytes) else whole[: data[0]] + data[1] + whole[data[0] :]
        )
        assert check_all(root, truth) or json.loads(path.read_bytes()) == json.loads(whole)

    change()
    path.write_bytes(whole)
    assert check_all(root, truth) == set()


@pytest.mark.parametrize(
    "value", ["", "x\ny", None, True, -1, 1e300, 10**400, 2**62, [], [[]], {}, {"a": 1}], ids=repr
)
def test_a_stored_setting_of_any_kind_is_read_or_a_typed_error(root, tmp_path, value):
    document = read_unsealed(root / SEALED[0])
    settings, refused = document["information"]["settings"], set()
    for name in setting_types():
        *sections, last = name.split(".")
        changed = deepcopy(settings)
        reduce(getitem, sections, changed)[last] = value
        document["information"]["settings"] = changed
        (root / SEALED[0]).write_bytes(seal_document(document))
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(changed))
        for read in (partial(_read_settings, root), partial(read_run_settings, tmp_path)):
            try:
                read()
            except KdcacheError as error:
                check_one_line(error)
                refused.add(name)
    assert "dataset.size" in refused


STRANGE = {
    "empty_list": b"[]",
    "nan": b'{"format": NaN, "format_version": -Infinity}',
    "long_number": b'{"format_version": ' + b"9" * 100_000 + b"}",
    "long_fraction": b'{"format_version": 1e999999999}',
    "twice": b'{"format": "kdcache", "format_version": 1, "format_version": 2, "zarr_format": 2, '
    b'"zarr_format": 3}',
    "lists_in_lists": b"[" * 200_000 + b"]" * 200_000,
    "objects_in_objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "never_closed": b'{"a":' * 200_000,
    "latin_1": '{"format": "é"}'.encode("latin-1"),
    "utf_16": '{"format": "kdcache"}'.encode("utf-16"),
    "marked": b'\xef\xbb\xbf{"format": "kdcache"}',
    "zeros": bytes(10_000),
    "group_with_shape": b'{"zarr_format": 3, "node_type": "group", "attributes": {}, "shape": [2]}',
    "group_with_null": b'{"zarr_format": 3, "node_type": "group", "attributes": [], "shape": [], '
    b'"codecs": null}',
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("name", [*SEALED[:2], *OPEN[1:]])
def test_strange_contents_are_a_typed_error(root, truth, name, kind):
    (root / name).write_bytes(STRANGE[kind])
    assert {"verify", "train"} & check_all(root, truth)


@pytest.mark.parametrize("name", [SEALED[0], SEALED[1], OPEN[2]])
def test_a_file_of_300_megabytes_is_not_read(root, truth, name):
    with (root / name).open("r+b") as file:
        file.truncate(300 << 20)
    assert "train" in check_all(root, truth)


def seal(text: str) -> bytes:
    """Any text as docs/format.md wants it: its own sha256, taken with zeros there, as the last
    field.
    """
    head, tail = text.rstrip().removesuffix("}").rstrip().encode() + b',\n "sha256": "', b'"\n}\n'
    return head + hashlib.sha256(head + b"0" * 64 + tail).hexdigest().encode() + tail


@pytest.mark.parametrize("name", SEALED[:2])
@pytest.mark.parametrize("depth", [60, 100, 300, 600, *range(800, 1000, 10), 3000])
def test_a_sealed_document_nested_deep_is_a_typed_error(root, truth, name, depth):
    document = read_unsealed(root / name)
    if "splits" in document:
        document["information"]["settings"]["teacher"]["device"] = "HERE"
    else:
        document["files"]["mid"]["size_bytes"] = "HERE"
    for opening, closing in (('{"a":', "}"), ("[", "]")):
        (root / name).write_bytes(
            seal(json.dumps(document).replace('"HERE"', opening * depth + "1" + closing * depth))
        )
        failed = check_all(root, truth)
        assert "train" in failed or (depth == 60 and name == "manifest.json")


def test_documents_that_agree_on_a_size_that_no_file_has_are_a_typed_error(root, truth):
    manifest, record = read_unsealed(root / SEALED[0]), read_unsealed(root / SEALED[2])
    manifest["splits"]["val"]["arrays"][0]["item_shape"] = [2**20, 2**20, 3]
    record["files"]["image"]["size_bytes"] = 2 * (3 * 2**40 + 4) + 2 * 16 + 4
    (root / SEALED[0]).write_bytes(seal_document(manifest))
    (root / SEALED[2]).write_bytes(seal_document(record))
    text = (root / "val/image/zarr.json").read_text()
    (root / "val/image/zarr.json").write_text(text.replace("48", str(2**20)))
    assert check_all(root, truth) == {
        "info",
        "settings",
        "train",
        "val",
        "verify",
    }  # of the manifest: too much for a sample


@pytest.mark.parametrize(
    "counts",
    [
        {"num_samples": 2**31},
        {"num_samples": 2**31, "shard_samples": 1},
        {"num_views": 10_000},
        {"num_samples": 2_000_001},
    ],
)
def test_counts_beyond_all_files_are_a_typed_error(root, truth, counts):
    document = read_unsealed(root / "manifest.json")
    document["splits"]["train"].update(counts)
    (root / "manifest.json").write_bytes(seal_document(document))
    assert "train" in check_all(root, truth)
