"""Files of tensors name no device: whatever trained them, any machine reads them. No file of a few
bytes keeps anybody busy.
"""

from __future__ import annotations

import ast
import time
import zipfile
from pathlib import Path

import pytest
import torch

from kdcache.models.stored_state import load_tensors, save_tensors, to_host

ROOT = Path(__file__).parents[2]


def make_state() -> dict:
    moments = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"params": [0]}]}
    weights = {"model_state_dict": {"weight": torch.ones(2, 2)}, "betas": (0.9, torch.ones(()))}
    return {**weights, "optimizer_state_dict": moments, "epoch": 3, "name": "cuda is a word"}


def list_tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value
    return (
        [t for v in inner for t in list_tensors(v)]
        if isinstance(value, dict | list | tuple)
        else []
    )


def test_every_tensor_goes_to_the_host(monkeypatch):
    """A device in disguise: what `cpu()` gives is another tensor."""
    state = make_state()
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: tensor + 1)
    moved = to_host(state)
    assert [t.sum().item() for t in list_tensors(moved)] == [8, 2, 4]
    assert [t.sum().item() for t in list_tensors(state)] == [4, 1, 2]
    assert moved["epoch"] == 3 and isinstance(moved["betas"], tuple)


def test_what_is_on_the_host_is_not_copied():
    state = make_state()
    assert to_host(state) is state


def test_a_file_is_written_from_the_host(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("kdcache.models.stored_state.to_host", lambda v: seen.append(v) or v)
    save_tensors(tmp_path / "a.pth", make_state())
    assert len(seen) == 1 and load_tensors(tmp_path / "a.pth", follow=False)[0]["epoch"] == 3


def test_no_other_module_saves_tensors():
    saving = []
    for path in (ROOT / "kdcache").rglob("*.py"):
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        saving += [path.name for call in calls if ast.unparse(call.func) == "torch.save"]
    assert saving == ["stored_state.py"]


def write_pickle(path: Path, body: bytes) -> None:
    """A file of torch.save with this pickle, of protocol 2, in it."""
    with zipfile.ZipFile(path, "w") as archive:
        parts = {"data.pkl": b"\x80\x02" + body + b".", "byteorder": b"little", "version": b"3\n"}
        for name, data in parts.items():
            archive.writestr(f"archive/{name}", data)


def make_towers(steps: int) -> dict[str, bytes]:
    """Pickles of a value that holds itself 2^steps times."""
    tuples = b"K\x01\x85q\x00"
    for step in range(steps):
        tuples += b"h%c\x86q%c" % (step, step + 1)
    lists = b"](]q\x00K\x01a"
    for step in range(steps):
        lists += b"]q%c(h%ch%ce" % (step + 1, step, step)
    return {
        "value": b"}X\x01\x00\x00\x00a" + tuples + b"s",
        "key": b"}" + tuples + b"K\x01s",  # a dict hashes it
        "list": b"}X\x01\x00\x00\x00a" + lists + b"es",
        "itself": b"}X\x01\x00\x00\x00a]q\x00h\x00as",
    }


@pytest.mark.parametrize("name", make_towers(1))
def test_a_value_in_itself_without_end_is_refused_at_once(tmp_path, name):
    """As repr and hash would walk all of it: 600 bytes once kept a command busy for ever."""
    path, began_s = tmp_path / "a.pth", time.monotonic()
    write_pickle(path, make_towers(40)[name])
    with pytest.raises(ValueError, match="one value is in it too often"):
        load_tensors(path)
    assert time.monotonic() - began_s < 10


@pytest.mark.parametrize("is_archive", [True, False])
def test_what_people_store_twice_is_read(tmp_path, is_archive):
    """One tuple for each group of an optimiser, also in a file of an old torch."""
    betas, weight = (0.9, 0.999), torch.ones(3)
    stored = {"groups": [{"betas": betas, "weight": weight} for _ in range(5_000)], (1, 2): [betas]}
    path = tmp_path / "a.pth"
    torch.save(stored, path, _use_new_zipfile_serialization=is_archive)
    found = load_tensors(path)[0]
    assert found[1, 2] == [betas] and len(found["groups"]) == 5_000
    assert torch.equal(found["groups"][-1]["weight"], weight)
