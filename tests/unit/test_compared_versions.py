"""What the benchmark of versions calls a change."""

from dataclasses import replace

from benchmarks.versions.compare import Swept, answer, changes
from benchmarks.versions.facts import Facts, facts
from benchmarks.versions.page import page
from benchmarks.zoo.rows import Judged, Row

RIGHT = Judged(0.9, {"base_model_tp_plan": {"up": "colwise", "down": "rowwise"}}, proof={"2": "proved"})
LESS = replace(RIGHT, fraction=0.5, plan={"base_model_tp_plan": {"up": "colwise_gather_output"}})
WRONG = replace(RIGHT, proof={"2": "refuted"}, findings={"proof 2": "TP203 it differs"})


def swept(version: str, **plans: Judged | None) -> Swept:
    said = Facts(version, ("colwise",), dict.fromkeys(plans, "same"))
    rows = {
        name: Row(name, "done" if mine else "crash", "" if mine else "it raised", mine=mine)
        for name, mine in plans.items()
    }
    return Swept(said, rows)


def test_a_change_is_another_verdict_or_another_plan() -> None:
    before = swept("5.23.0", same=RIGHT, worse=RIGHT, smaller=RIGHT, gone=RIGHT, mended=WRONG)
    after = swept("5.24.0", same=RIGHT, worse=WRONG, smaller=LESS, gone=None, mended=RIGHT, new=WRONG)
    found = {change.name: (change.before, change.after, change.reason) for change in changes(before, after)}
    assert found == {
        "worse": ("proved", "refuted", "TP203 it differs"),
        "smaller": (
            "proved",
            "proved",
            "base_model_tp_plan down: rowwise -> no entry; base_model_tp_plan up: colwise -> colwise_gather_output; "
            "share 90.0% -> 50.0%",
        ),
        "gone": ("proved", "stopped in crash", "it raised"),
        "mended": ("refuted", "proved", ""),
    }
    shown = page((before, after))
    assert "- new: refuted. TP203 it differs" in shown
    assert "same |" not in shown.replace("the same |", "")


def test_own_plans_that_are_not_right_are_told_with_their_versions() -> None:
    first, second = (
        Swept(Facts(version, (), {"m": ""}), {"m": Row("m", "done", mine=RIGHT, upstream=wrong)})
        for version, wrong in (
            ("5.23.0", replace(WRONG, findings={"proof 2": "TP203 it differs [mlp, transformers/models/m.py:3]"})),
            ("5.24.0", replace(WRONG, findings={"proof 2": "TP203 it differs [mlp, transformers/models/m.py:7]"})),
        )
    )
    shown = page((first, second))
    assert "| m | refuted | 5.23.0, 5.24.0 | TP203 it differs [mlp] |" in shown
    assert "| 5.24.0 | 1 of 1 | 0 | 1 | 0 | 0 | 0 | 0 | 0 | 1 | 0 | 0 | 0 |" in shown


def test_an_answer_is_the_worst_of_what_was_asked() -> None:
    assert answer(Row("m", "done", mine=replace(RIGHT, run={"2": "confirmed"}))) == "confirmed"
    assert answer(Row("m", "done", mine=replace(RIGHT, run={"2": "refuted"}))) == "refuted"
    assert answer(Row("m", "done", mine=replace(RIGHT, proof={}))) == "not proved"
    assert answer(Row("m", "done", mine=replace(RIGHT, fraction=0.0))) == "no plan"


def test_the_facts_of_the_installed_version() -> None:
    have = facts()
    assert {"colwise", "rowwise"} <= set(have.styles)
    assert have.sources["llama"] and have.sources["llama"] != have.sources["gpt2"]
