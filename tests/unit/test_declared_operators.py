"""Operators that a user declares: what their reference shows, and what a plan with them comes to."""

# mypy: disable-error-code="no-any-return"

from pathlib import Path

import pytest
import torch
from torch import nn

from shardproof.operators import register
from shardproof.planner.ir.errors import ArgumentError
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.declared_operators import read_equation
from shardproof.verify.proof.prove import prove
from shardproof.verify.report.report import LevelResult

_PACKAGE = torch.library.Library("shardproof_tests", "DEF")
for _name in ("along", "across", "unknown"):
    _PACKAGE.define(f"{_name}(Tensor x, Tensor w, float scale) -> Tensor")
_PACKAGE.impl("unknown", lambda x, w, scale: x * w * scale, "Meta")
_PACKAGE.define("own(Tensor x) -> Tensor")
_PACKAGE.define("kernel(Tensor x) -> Tensor")
_PACKAGE.define("pairs(Tensor x) -> Tensor")
_PACKAGE.impl("own", lambda x: x + 1, "CPU")


class _Scanned(nn.Module):
    """Heads that an operator of somebody's own takes, with a weight that belongs to them."""

    def __init__(self, operator: str) -> None:
        super().__init__()
        self.operator = operator
        self.up, self.gate = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.down = nn.Linear(64, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up, gate = (part(x).unflatten(-1, (-1, 8)) for part in (self.up, self.gate))
        scanned = getattr(torch.ops.shardproof_tests, self.operator)(up, gate, 0.5)
        return self.down(scanned.flatten(2))


def _proved(operator: str) -> LevelResult:
    model = load(_Scanned(operator), inputs={"x": torch.zeros(2, 6, 64)})
    plan = {"up": "colwise", "gate": "colwise", "down": "rowwise"}
    return prove(model, Plan.from_json({"base_model_tp_plan": plan}))


def test_heads_that_the_reference_keeps_apart_are_proved_and_the_kernel_is_an_assumption() -> None:
    register(
        "shardproof_tests::along", "b t h d, b t h d -> b t h d", lambda x, w, scale: torch.cumsum(x * w * scale, 1)
    )
    result = _proved("along")
    assert result.verdict is Verdict.PROVED, result.findings
    assert result.scope is not None and any("no kernel for the CPU" in text for text in result.scope.assumptions)


def test_heads_that_the_reference_mixes_are_refuted() -> None:
    """The equation is the same: what is mixed is tried, not said."""
    register(
        "shardproof_tests::across", "b t h d, b t h d -> b t h d", lambda x, w, scale: torch.cumsum(x * w * scale, 2)
    )
    result = _proved("across")
    assert result.verdict is Verdict.REFUTED
    assert {finding.code for finding in result.findings} == {"TP206"}


def test_without_a_declaration_nothing_is_claimed() -> None:
    result = _proved("unknown")
    assert result.verdict is Verdict.NOT_PROVED
    assert {finding.code for finding in result.findings} == {"TP210"}


class _Owned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.shardproof_tests.own(self.up(x))


def test_a_reference_that_is_not_the_operator_is_an_error() -> None:
    register("shardproof_tests::own", "b t d -> b t d", lambda x: x + 2)
    model = load(_Owned(), inputs={"x": torch.zeros(2, 6, 64)})
    with pytest.raises(ArgumentError, match="something else than the operator itself"):
        prove(model, Plan.from_json({"base_model_tp_plan": {"up": "colwise_gather_output"}}))


@pytest.mark.parametrize(
    ("name", "equation", "said"),
    [
        ("scan", "a -> a", "names no operator"),
        ("nobody::knows", "a -> a", "torch has no operator"),
        ("aten::add", "a, a -> a", "has a rule already"),
        ("shardproof_tests::own", "a, a", "no `->`"),
        ("shardproof_tests::own", "a a -> a", "twice"),
        ("shardproof_tests::own", "a-b -> c", "name of a dim"),
    ],
)
def test_a_wrong_declaration_is_said(name: str, equation: str, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        register(name, equation, lambda *given: given[0])


_PAIRED = {"base_model_tp_plan": {"up": "colwise", "down": "rowwise"}}


class _Paired(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.ops.shardproof_tests.pairs(self.up(x)))


def _pairs(x: torch.Tensor) -> torch.Tensor:
    """Whole pairs alone."""
    return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def test_a_dim_that_only_equal_parts_keep_apart_is_undecided() -> None:
    register("shardproof_tests::pairs", "b t d -> b t d", _pairs, sizes={"d": 4})
    found = prove(load(_Paired(), inputs={"x": torch.zeros(2, 6, 64)}), Plan.from_json(_PAIRED))
    assert found.verdict is Verdict.NOT_PROVED
    assert {finding.code for finding in found.findings} == {"TP210"}


@pytest.mark.parametrize(("sizes", "said"), [({"z": 4}, "no dim of what"), ({"d": 1}, "tried in parts")])
def test_wrong_sizes_are_said(sizes: dict[str, int], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        register("shardproof_tests::own", "b t d -> b t d", torch.tanh, sizes=sizes)


def test_dims_without_a_counterpart_have_no_name() -> None:
    assert read_equation("b t _, _ -> b t").inputs == (("b", "t", None), (None,))


def test_a_declaration_in_the_file_of_a_model_reaches_its_trace(tmp_path: Path) -> None:
    file = tmp_path / "kernel_model.py"
    file.write_text(
        "import torch\nfrom torch import nn\nimport shardproof.operators\n"
        "shardproof.operators.register('shardproof_tests::kernel', 'b t d -> b t d', torch.tanh)\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, width=64):\n"
        "        super().__init__()\n"
        "        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)\n"
        "    def forward(self, x):\n"
        "        return self.down(torch.ops.shardproof_tests.kernel(self.up(x)))\n"
    )
    result = prove(
        load(f"{file}:Net", inputs=["x: float[2, 6, 64]"]),
        Plan.from_json({"base_model_tp_plan": {"up": "colwise", "down": "rowwise"}}),
    )
    assert result.verdict is Verdict.PROVED, result.findings
