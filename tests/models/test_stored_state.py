"""Files of tensors name no device: whatever trained them, any machine reads them."""

from __future__ import annotations

import ast
from pathlib import Path

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
