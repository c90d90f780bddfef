"""Any `nn.Module`: a class, a function or a module in memory is planned, proved and run, under its own names."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from shardproof import load, prove, suggest
from shardproof.launch.cli import run
from shardproof.launch.commands.cases.request import VerifyRequest
from shardproof.launch.commands.cases.run_cases import NamedModels
from shardproof.launch.commands.read_inputs import ModelReference
from shardproof.launch.commands.verify import requests_of
from shardproof.launch.ranks.confirm import confirm, confirm_cases
from shardproof.planner.inputs.example import Sizes
from shardproof.planner.inputs.numbers import real_inputs
from shardproof.planner.ir.errors import ArgumentError, LoadError
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.loading.build import build
from shardproof.planner.twins.twin import twin
from shardproof.verify.stages.case import Case

CODE = """
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class LarkConfig:
    vocab_size: int = 96
    n_layer: int = 3
    n_head: int = 4
    n_embd: int = 64

    @property
    def head_dim(self):
        return self.n_embd // self.n_head


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.qkv = nn.ModuleList(nn.Linear(config.n_embd, config.n_embd, bias=False) for _ in range(3))
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.down = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        rows, length, _ = x.shape
        q, k, v = (p(x).view(rows, length, -1, self.config.head_dim).transpose(1, 2) for p in self.qkv)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(rows, length, -1))
        return x + self.down(F.gelu(self.up(x)))


class Lark(nn.Module):
    def __init__(self, config: LarkConfig):
        super().__init__()
        self.config = config
        self.table = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.head.weight = self.table.weight

    def forward(self, idx, targets=None):
        x = self.table(idx)
        for block in self.blocks:
            x = block(x)
        assert self.config.head_dim
        return self.head(x)


class Mlp(nn.Module):
    def __init__(self, width=64, hidden=256):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def two():
    return nn.Sequential(Mlp(32, 64), Mlp(32, 128))


def nothing():
    return 3


def needs(width):
    return nn.Linear(width, width)
"""
MLP = {"up": "colwise", "down": "rowwise"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("any") / "lark.py"
    path.write_text(CODE)
    return path


@pytest.mark.parametrize(
    ("name", "styles"),
    [
        (
            "Lark",
            {
                "blocks.*.qkv.*": "colwise",
                "blocks.*.out": "rowwise",
                "blocks.*.up": "colwise",
                "blocks.*.down": "rowwise",
            },
        ),
        ("Mlp", MLP),
        ("two", {"0.up": "colwise", "0.down": "rowwise", "1.up": "colwise", "1.down": "rowwise"}),
    ],
)
def test_it_is_planned_proved_and_confirmed(file: Path, name: str, styles: dict[str, str]) -> None:
    loaded = load(f"{file}:{name}")
    suggestion = suggest(loaded)
    found = {entry.pattern: entry.style for entry in suggestion.plan.tp}
    assert {pattern: found.get(pattern) for pattern in styles} == styles
    assert prove(loaded, suggestion.plan, tp=2).verdict is Verdict.PROVED
    (result,) = confirm_cases((Case(twin(loaded, tp=2), suggestion.plan, tp=2),), engine="inprocess")
    assert result.verdict is Verdict.CONFIRMED, result.findings


def test_names_are_those_of_the_module(file: Path) -> None:
    built = build(load(f"{file}:Lark", overrides={"n_layer": 2}))
    assert [name for name, _ in built.named_children()] == ["table", "blocks", "head"]
    assert len(built.blocks) == 2  # type: ignore[arg-type]
    assert built.get_parameter("head.weight") is built.get_parameter("table.weight")


def test_a_wrong_plan_is_refuted(file: Path) -> None:
    loaded = load(f"{file}:Mlp")
    plan = suggest(loaded).plan
    wrong = type(plan).from_json({"base_model_tp_plan": {"up": "colwise", "down": "colwise"}})
    assert prove(loaded, plan, tp=2).verdict is Verdict.PROVED
    assert prove(loaded, wrong, tp=2).verdict is Verdict.REFUTED


def test_a_module_in_memory_is_proved_and_not_run(file: Path) -> None:
    module = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    loaded = load(module, inputs=["input: float[b, 32]"])
    plan = suggest(loaded).plan
    assert {entry.pattern: entry.style for entry in plan.tp} == {"0": "colwise", "2": "rowwise"}
    assert prove(loaded, plan, tp=2).verdict is Verdict.PROVED
    with pytest.raises(LoadError, match=r"made in memory: give file\.py:function"):
        confirm(loaded, plan)
    assert all(not parameter.is_meta for parameter in module.parameters())


def test_inputs_are_declared(file: Path) -> None:
    loaded = load(f"{file}:Mlp", inputs=["x: float[b, t, width]"])
    assert suggest(loaded).plan.tp
    with pytest.raises(ArgumentError, match="not of the form NAME: DTYPE"):
        load(f"{file}:Mlp", inputs=["x: flot[2]"])
    with pytest.raises(ArgumentError, match="depth is no number and no field"):
        load(f"{file}:Mlp", inputs=["x: float[b, depth]"])
    with pytest.raises(ArgumentError, match="leave --input out"):
        load("llama", inputs=["x: float[2]"])


def test_tensors_stand_for_their_dtypes_and_shapes(file: Path) -> None:
    loaded = load(f"{file}:Mlp", inputs={"x": torch.randn(2, 3, 64, dtype=torch.float64)})
    assert loaded.config.declared_inputs == ["x: float64[2, 3, 64]"]
    assert load(f"{file}:Mlp", inputs={"x": "float[b, 3, width]"}).config.declared_inputs == ["x: float[b, 3, width]"]
    with pytest.raises(ArgumentError, match="the input x is complex64; give a tensor of one of float"):
        load(f"{file}:Mlp", inputs={"x": torch.zeros(2, dtype=torch.complex64)})


def test_inputs_are_what_a_function_returns(tmp_path: Path) -> None:
    (tmp_path / "rows.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "class Rows(nn.Module):\n"
        "    def __init__(self, width=32, hidden=64):\n"
        "        super().__init__()\n"
        "        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)\n\n"
        "    def forward(self, parts, counts, scale):\n"
        "        rows = torch.cat([part[:count] for part, count in zip(parts.split(4), counts.tolist())])\n"
        "        return self.down(torch.relu(self.up(rows))) * scale\n\n"
        "def example(fields):\n"
        "    return {'parts': torch.ones(8, fields.width), 'counts': torch.tensor([3, 2]), 'scale': 2.0}\n\n"
        "def nothing():\n    return 3\n\n"
        "def broken():\n    raise KeyError('lark')\n"
    )
    file = tmp_path / "rows.py"
    loaded = load(f"{file}:Rows", inputs=[f"{file}:example"])
    plan = suggest(loaded).plan
    assert {entry.pattern: entry.style for entry in plan.tp} == {"up": "colwise", "down": "rowwise"}
    assert prove(loaded, plan, tp=2).verdict is Verdict.PROVED
    small = twin(loaded, tp=2)
    assert real_inputs(build(small, device="cpu"), Sizes(2, 5, 5))["counts"].tolist() == [3, 2]
    with pytest.raises(ArgumentError, match="returns int; return a dict"):
        load(f"{file}:Rows", inputs=[f"{file}:nothing"])
    with pytest.raises(ArgumentError, match="raised KeyError: 'lark'; mend that first"):
        load(f"{file}:Rows", inputs=[f"{file}:broken"])
    with pytest.raises(LoadError, match="there is no function lark in it"):
        load(f"{file}:Rows", inputs=[f"{file}:lark"])


def test_what_is_no_factory_is_one_sentence(file: Path) -> None:
    with pytest.raises(LoadError, match=r"makes int, and no nn\.Module"):
        load(f"{file}:nothing")
    with pytest.raises(LoadError, match="LarkConfig is no class of modules and no function that makes one"):
        load(f"{file}:LarkConfig")
    with pytest.raises(LoadError, match="Give values with --set: width"):
        load(f"{file}:needs")


def test_the_plan_is_printed_under_no_config_class(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["suggest", f"{file}:Mlp", "--quiet", "--format", "python"]) == 0
    out = capsys.readouterr().out
    assert "tp_plan = {" in out
    assert "In class" not in out
    assert "vllm" not in out
    namespace: dict[str, object] = {}
    exec(out, namespace)
    assert namespace["tp_plan"] == MLP


def test_forward_gives_what_the_module_gives(file: Path) -> None:
    torch.manual_seed(0)
    built = build(load(f"{file}:Mlp"), device="cpu")
    x = torch.randn(2, 64)
    assert torch.equal(built(x)[0], built.down(torch.relu(built.up(x))))  # type: ignore[operator]


def test_verify_keeps_the_inputs_of_the_command_line() -> None:
    given = ModelReference("", {}, True, ("x: float[b, 16, 64]",))
    (request,) = requests_of(NamedModels(("file.py:M",)), VerifyRequest(given), fixed=None)
    assert request.model == replace(given, reference="file.py:M")
