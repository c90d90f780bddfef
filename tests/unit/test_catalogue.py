"""The catalogue: every finding has the same form, its own code and name, and both kinds of example."""

import re

import pytest

from shardproof.planner.ir.findings import Finding, Severity
from shardproof.planner.ir.plan import Edit, Plan
from shardproof.planner.ir.styles import STYLES
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix, carried_plan
from shardproof.planner.loading.load import load
from shardproof.verify.clients.prove import prove_for
from shardproof.verify.clients.registry import find_dialect
from shardproof.verify.findings.catalogue import (
    FAMILIES,
    Example,
    Registry,
    Rule,
    explain,
    find,
    overview,
    rules,
    snippet,
)
from shardproof.verify.proof.prove import prove

CONTRACT = {
    *("PL101", "PL102", "PL103", "PL104", "PL105"),
    *(f"TP2{number:02}" for number in range(1, 14)),
    *("PP301", "PP302", "PP303", "PP304"),
    *("BE411", "BE412", "BE414", "BE415", "BE416", "BE417", "BE431", "BE432"),
    *("DY501", "DY502", "DY503", "DY504", "DY505", "DY506", "DY507"),
}
EXAMPLES = [
    pytest.param(rule, example, kind, id=f"{rule.code}-{kind}-{number}")
    for rule in rules().values()
    for kind, examples in (("invalid", rule.invalid), ("valid", rule.valid))
    for number, example in enumerate(examples)
    if example.model
]


def test_every_code_in_use_is_explained() -> None:
    assert set(rules()) >= CONTRACT


@pytest.mark.parametrize("rule", rules().values(), ids=rules())
def test_form(rule: Rule) -> None:
    assert re.fullmatch(r"(PL1|TP2|PP3|BE4|DY5|TR6)\d\d", rule.code)
    assert FAMILIES[rule.code[:2]] == rule.family
    assert re.fullmatch(r"[a-z]+(-[a-z]+)+", rule.name)
    for text in (rule.what, rule.why, rule.use_instead, rule.fix_safety):
        assert text[0].isupper() or text[0] in "`-0123456789x"
        assert text.endswith(".")
        assert text.isascii()
        assert "  " not in text


@pytest.mark.parametrize("rule", rules().values(), ids=rules())
def test_both_kinds_of_example(rule: Rule) -> None:
    assert rule.invalid
    assert rule.valid
    for example in (*rule.invalid, *rule.valid):
        assert example.note.endswith(".")
        assert snippet(example)
        assert bool(example.model) != bool(example.code)
        assert all(style is None or style in STYLES or rule.code == "PL101" for _, style in example.plan)


def test_names_are_unique() -> None:
    assert len({rule.name for rule in rules().values()}) == len(rules())


def test_registering_twice_raises() -> None:
    registry = Registry()
    rule = Rule("TP299", "two-of-them", Severity.ERROR, "", "", "", "", (), ())
    registry.register(rule)
    with pytest.raises(ValueError, match="TP299 two-of-them is registered twice"):
        registry.register(rule)


@pytest.mark.parametrize("rule", rules().values(), ids=rules())
def test_explanation_has_every_part(rule: Rule) -> None:
    text = explain(rule.code)
    parts = ["What", "Why", "Example", "Use instead", "Fix safety"]
    assert [line for line in text.splitlines() if line in parts] == parts
    assert text.startswith(f"{rule.code} {rule.name} (")
    assert max(map(len, text.splitlines())) <= 120


def test_explained_by_name_and_in_any_case() -> None:
    assert explain("tp213") == explain("packed-cut-across-blocks") == explain("TP213")


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("TP299", "there is no finding 'TP299'; did you mean TP219 (own-backward-is-wrong)?"),
        ("reduced-twise", "there is no finding 'reduced-twise'; did you mean TP205 (reduced-twice)?"),
        ("!", "there is no finding '!'; see `plan explain`."),
    ],
)
def test_unknown_word_names_the_nearest(word: str, sentence: str) -> None:
    with pytest.raises(KeyError) as error:
        find(word)
    assert error.value.args[0] == sentence


def test_overview_has_a_line_for_each() -> None:
    assert [line.split()[0] for line in overview().splitlines()] == list(rules())


@pytest.mark.parametrize(("rule", "example", "kind"), EXAMPLES)
def test_examples_do_what_they_say(rule: Rule, example: Example, kind: str) -> None:
    codes = {finding.code for finding in findings_of(example)}
    assert (rule.code in codes) == (kind == "invalid")
    assert kind == "invalid" or not codes


def findings_of(example: Example) -> tuple[Finding, ...]:
    """What the proof finds in an example; two layers are as good as all."""
    loaded = load(example.model, overrides={"num_hidden_layers": "2", **dict(example.overrides)})
    model = build(loaded)
    plan = plan_of(example, carried_plan(loaded, model), base_prefix(model))
    if example.client:
        dialect = find_dialect(example.client)
        return prove_for(dialect, loaded, plan, tp=example.degree, pp=example.stages).findings
    return prove(loaded, plan, tp=example.degree).findings


def plan_of(example: Example, carried: Plan, prefix: str) -> Plan:
    """The plan that an example is about."""
    plan = Plan() if example.alone else carried
    for pattern, style in example.plan:
        have = plan.styles(prefix).get(pattern)
        if have != style:
            plan = plan.edited(Edit(pattern, have, style), prefix)
    return plan
