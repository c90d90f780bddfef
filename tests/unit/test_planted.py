"""Faults that a right-looking plan makes of right code, and code that looks like one of them and is right."""

import pytest

from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.loading.load import load
from shardproof.verify.proof.prove import prove

PLAN = Plan(
    tp=tuple(
        TpEntry(key, style)
        for key, style in {"ask": "colwise", "offer": "colwise", "tell": "colwise", "out": "rowwise"}.items()
    )
)


@pytest.mark.parametrize(
    ("variant", "verdict", "code"),
    [
        ("right", "proved", None),
        ("slopes by local count", "refuted", "TP203"),
        ("slopes of the first heads", "refuted", "TP203"),
        ("scale by local count", "refuted", "TP209"),
        ("scale in a tensor", "refuted", "TP209"),
        ("scale in a list", "refuted", "TP209"),
        ("scale that fills", "refuted", "TP209"),
        ("steps by local count", "refuted", "TP209"),
        ("scale of a width", "proved", None),
        ("heads rolled", "refuted", "TP206"),
        ("heads summed up", "refuted", "TP206"),
        ("heads normed together", "refuted", "TP206"),
        ("heads in halves", "refuted", "TP213"),
        ("heads in pairs", "proved", None),
        ("heads one by one", "not proved", "TP211"),
        ("heat", "refuted", "TP207"),
        ("complex heat", "refuted", "TP207"),
        ("detached", "proved", None),
        ("frozen", "proved", None),
    ],
)
def test_planted(variant: str, verdict: str, code: str | None) -> None:
    result = prove(load("tests.zoo.planted_models:PlantedForCausalLM", overrides={"variant": variant}), PLAN, tp=2)
    found = [finding.code for finding in result.findings]
    assert (result.verdict.value, found[0] if found else None) == (verdict, code)
