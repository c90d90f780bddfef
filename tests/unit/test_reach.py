"""What the client's hooks cannot reach is refuted: calls by keyword, weights that another module reads."""

import pytest

from planner.frontend.conversions import interleaved
from planner.frontend.load import build, carried_plan, load
from planner.ir.findings import Severity, Verdict
from planner.ir.plan import Plan, TpEntry
from verify.static import prove

MODEL = "tests.zoo.borrowing_model:BorrowingForCausalLM"


@pytest.mark.parametrize(
    ("plan", "code", "entry"),
    [
        ({"up": "colwise", "down_again": "rowwise"}, None, None),
        ({"called_by_keyword": "colwise_gather_output"}, "TP202", "called_by_keyword"),
        ({"never_called": "colwise", "down": "rowwise"}, "TP215", "never_called"),
        ({"table": "embedding_rowwise", "holder": "embedding_rowwise"}, None, None),
        ({"table": "embedding_rowwise"}, "TP212", "holder"),
    ],
)
def test_hooks_reach_what_is_called_with_a_tensor(plan: dict[str, str], code: str | None, entry: str | None) -> None:
    result = prove(load(MODEL), Plan(tp=tuple(TpEntry(key, style) for key, style in plan.items())), tp=2)
    if code is None:
        assert result.verdict is Verdict.PROVED
        return
    assert result.verdict is Verdict.REFUTED
    assert (result.findings[0].code, result.findings[0].place.entry) == (code, entry)


def test_halves_that_are_told_apart_after_each_rank_has_its_part_are_not_decided() -> None:
    loaded = load("inkling2_text", overrides={"num_hidden_layers": "2"})
    model = build(loaded)
    assert set(interleaved(model).values()) == {1}
    result = prove(loaded, carried_plan(loaded, model), tp=2)
    assert [(finding.code, finding.severity) for finding in result.findings] == [("TP210", Severity.UNDECIDED)]
    assert interleaved(build(load("mixtral"))) == {}
