"""A student that is killed and resumed is the student that was never killed: same batches, same
losses, bit for bit.
"""

import json
import time

import numpy as np
import pytest
import torch

from tests.faults import children
from tests.support import quick


def training(given: dict, folder) -> dict:
    return {
        **given,
        "run": {"dir": str(folder), "baseline": False, "resume": True},
        "train": {**given["train"], "epochs": 4},
    }


def read_losses(folder) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith("_s")} for line in lines]


@pytest.mark.parametrize(
    "count",
    [2, pytest.param(3, marks=pytest.mark.nightly), pytest.param(20, marks=pytest.mark.exhaustive)],
)
def test_killed_at_random_moments_a_student_ends_with_the_same_weights(
    quick_data, whole_root, tmp_path, count
):
    given = quick.quick_given(quick_data, whole_root)
    began_s = time.monotonic()
    assert children.run(children.train, training(given, tmp_path / "whole")) == 0
    took_s, kills, run = time.monotonic() - began_s, 0, 0
    moments = np.random.Generator(np.random.Philox(count))
    while kills < count:
        run += 1
        folder, ended = tmp_path / f"run{run}", False
        while not ended:
            child = children.start(children.train, training(given, folder))
            child.join(float(moments.uniform(0.2, 1.0)) * took_s if kills < count else 60)
            child.kill()
            child.join()
            kills += child.exitcode == -9
            ended = child.exitcode == 0
        assert read_losses(folder) == read_losses(tmp_path / "whole")
        a, b = (
            torch.load(f / "student_kd_last.pth", weights_only=True)
            for f in (folder, tmp_path / "whole")
        )
        for part in ("model_state_dict", "alignment_state_dict"):
            assert all(torch.equal(value, b[part][name]) for name, value in a[part].items())
