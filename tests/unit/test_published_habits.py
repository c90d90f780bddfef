"""Habits of published packages: modules whose inputs, constructors and outputs are not those of Transformers."""

from pathlib import Path

import pytest

from shardproof import load, prove, suggest
from shardproof.launch.ranks.confirm import confirm_cases
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.twins.twin import twin
from shardproof.verify.stages.case import Case

CODE = """
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


class Mlp(nn.Module):
    def __init__(self, width=32, hidden=64):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


class Cut(nn.Module):
    ways = {4: "images"}

    def forward(self, x):
        assert self.ways[x.ndim]
        rows, colours, height, width = x.shape
        cut = x.view(rows, colours, height // 4, 4, width // 4, 4)
        return cut.permute(0, 2, 4, 3, 5, 1).reshape(rows, height // 4 * (width // 4), 16 * colours)


class Images(nn.Module):
    # a layer without parameters takes the image apart by its number of dims
    def __init__(self):
        super().__init__()
        self.cut, self.table, self.mlp = Cut(), nn.Linear(48, 32), Mlp()

    def forward(self, img):
        return self.mlp(self.table(self.cut(img)))


class OneSize(nn.Module):
    # an assertion names the size that is wanted
    def __init__(self):
        super().__init__()
        self.patches, self.norm, self.mlp = nn.Conv2d(3, 32, 4, 4), nn.LayerNorm(32), Mlp()
        self.places = nn.Parameter(torch.zeros(1, 36, 32))

    def forward(self, x):
        height = x.shape[-2]
        torch._assert(height == 24, f"Input height ({height}) doesn't match model (24).")
        return self.mlp(self.norm(self.patches(x).flatten(2).transpose(1, 2) + self.places))


class Normalised(nn.Module):
    # the mean square of what it gives is constant
    def __init__(self):
        super().__init__()
        self.mlp = Mlp()

    def forward(self, x):
        return nn.functional.normalize(self.mlp(x), dim=-1)


class Categories(nn.Module):
    # an assertion says how many values are wanted; a type is named and taken back
    def __init__(self):
        super().__init__()
        self.table, self.mlp = nn.Linear(3, 32), Mlp()

    def forward(self, x):
        assert x.shape[-1] == 3, "you must pass in 3 values"
        return self.mlp(self.table(x).type(self.table.weight.type()))


class Towers(nn.Module):
    # nothing has to be given, and what is given decides what runs
    def __init__(self):
        super().__init__()
        self.table, self.mlp, self.scale = nn.Embedding(50, 32), Mlp(), nn.Parameter(torch.ones(32))

    def forward(self, tokens=None, weights=None, flag=False):
        if tokens is None:
            return None
        x = self.mlp(self.table(tokens))
        return x if weights is None else x * self.scale


class Empty(nn.Module):
    # lists with empty places hold the parts of one layer
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([nn.ModuleList([nn.LayerNorm(32), None]), Mlp()]) for _ in range(3))

    def forward(self, x):
        for (norm, after), mlp in self.layers:
            x = x + mlp(norm(x))
        return x


class Reads(nn.Module):
    # a constructor that reads numbers off tensors, and takes no lists
    def __init__(self, depths=(1, 1)):
        super().__init__()
        assert isinstance(depths, tuple)
        rates = [rate.item() for rate in torch.linspace(0.1, 1, 3)]
        self.rates, self.layers = rates, nn.ModuleList(Mlp() for _ in rates)

    def forward(self, x):
        for rate, mlp in zip(self.rates, self.layers):
            x = x + rate * mlp(x)
        return x


class Answers(nn.Module):
    # a dict of outputs, some of which are none; a table that is neither parameter nor buffer
    def __init__(self):
        super().__init__()
        self.mlp, self.table = Mlp(), torch.linspace(0.5, 1, 32)

    def forward(self, x):
        return {"mask": None, "features": self.mlp(x * self.table)}


class OwnConfig(PreTrainedConfig):
    model_type = "tests_own"


class Own(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.mlp = Mlp()
        self.post_init()

    def forward(self, x):
        return self.mlp(x)


def own():
    return Own(OwnConfig())
"""
NAMES = ("Images", "OneSize", "Normalised", "Categories", "Towers", "Empty", "Reads", "Answers", "own")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("habits") / "habits.py"
    path.write_text(CODE)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_it_is_planned_proved_and_confirmed(file: Path, name: str) -> None:
    loaded = load(f"{file}:{name}", overrides={"depths": [1, 1]} if name == "Reads" else {})
    plan = suggest(loaded).plan
    assert {entry.style for entry in plan.tp if entry.pattern.endswith((".up", ".down"))} == {"colwise", "rowwise"}
    assert prove(loaded, plan, tp=2).verdict is Verdict.PROVED
    (result,) = confirm_cases((Case(twin(loaded, tp=2), plan, tp=2),), engine="inprocess")
    assert result.verdict is Verdict.CONFIRMED, result.findings
