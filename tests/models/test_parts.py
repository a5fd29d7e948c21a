"""Parts of any network by name: what they give is seen, copied and brought to [N, C, h, w]."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdcache.errors import SettingsError
from kdcache.models.networks import Parts, bring_to_grid, find_stride
from tests.support.helpers import check_one_line

HW = (64, 96)


class Several(nn.Module):
    """Gives three tensors, one by a name, and text."""

    def forward(self, x: Tensor) -> dict:
        return {"maps": [x[..., ::4, ::4], x[..., ::8, ::8]], "deep": (x,), "text": "no tensor"}


class Net(nn.Module):
    """An encoder of stages, and one part that nobody asks."""

    def __init__(self) -> None:
        super().__init__()
        stages = {"first": nn.Conv2d(3, 4, 4, 4), "act": nn.ReLU(inplace=True)}
        self.encoder = nn.Sequential()
        for name, stage in stages.items():
            self.encoder.add_module(name, stage)
        self.several, self.unused = Several(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        self.several(x)
        return self.encoder(x)


def take(name: str, stages: dict | None = None) -> Tensor:
    torch.manual_seed(0)
    net, x = Net(), torch.rand(2, 3, *HW) - 0.5
    parts = Parts(net, {"low": name}, stages=stages or {})
    net(x)
    return parts.take(HW)["low"]


def test_a_part_goes_by_its_name_or_without_the_name_of_the_encoder():
    whole, short = take("encoder.first"), take("first")
    assert torch.equal(whole, short) and whole.shape == (2, 4, 16, 24)
    assert whole.min() < 0  # the ReLU behind it works in place, on another tensor


def test_one_of_several_tensors_goes_by_number_or_name():
    assert take("several[maps][1]").shape == (2, 3, 8, 12)
    assert take("several[deep][-1]").shape == (2, 3, *HW)
    assert take("layer1", {"layer1": "several[maps][0]"}).shape == (2, 3, 16, 24)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("encoder.frist", "teacher.layers.low is 'encoder.frist', expected one of encoder.first"),
        ("several", "several is giving a dict of maps, deep, text, expected a part that gives"),
        ("several[maps]", "is giving a list of 2, expected a part that gives a tensor"),
        ("several[text]", "is giving a str, expected a part that gives a tensor"),
        ("several[maps][7]", "is giving nothing, expected a part that gives a tensor"),
        ("unused", "teacher.layers.low unused is never asked"),
        ("", "teacher.layers.low is '', expected one of"),
    ],
)
def test_what_is_no_feature_is_one_line(name: str, words: str):
    with pytest.raises(SettingsError) as error:
        take(name)
    check_one_line(error, words, "choose another, or leave low out of cache.levels")


def test_tokens_and_channels_last_are_brought_to_a_grid():
    grid = torch.rand(2, 5, 8, 12)  # stride 8
    tokens = grid.flatten(2).transpose(1, 2)
    for extra in (0, 1, 2, 5):
        given = torch.cat([torch.zeros(2, extra, 5), tokens], 1)
        assert torch.equal(bring_to_grid(given, HW), grid)
    assert torch.equal(bring_to_grid(grid.permute(0, 2, 3, 1), HW), grid)
    assert bring_to_grid(grid, HW) is grid
    assert bring_to_grid(tokens[:, 7:], HW) is None and bring_to_grid(torch.rand(2, 5), HW) is None


def test_a_stride_divides_both_sides_alike():
    assert [find_stride(grid, HW) for grid in ((64, 96), (16, 24), (4, 6), (1, 1), (5, 7))] == [
        1,
        4,
        16,
        None,
        None,
    ]
