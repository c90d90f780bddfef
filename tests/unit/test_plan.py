"""Plans: their JSON round trip, key matching as Transformers does it, edits, and what a wrong plan file says."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.distributed import tensor_parallel

from shardproof.planner.ir.plan import PLAN_KEYS, Edit, Plan, PlanError, PpEntry, TpEntry, generic, join
from shardproof.planner.ir.styles import STYLES

parts = st.one_of(
    st.integers(0, 120).map(str), st.sampled_from(["layers", "w1", "1w", "*", "q_proj", "weight", "h", "00"])
)
names = st.lists(parts, min_size=1, max_size=7).map(".".join)
styles = st.sampled_from(sorted(STYLES))
words = st.lists(st.sampled_from(["input_ids", "inputs_embeds", "hidden_states", "x"]), max_size=3).map(tuple)


def unique(entries: st.SearchStrategy[TpEntry]) -> st.SearchStrategy[tuple[TpEntry, ...]]:
    return st.lists(entries, max_size=5, unique_by=lambda entry: entry.pattern).map(tuple)


tp_entries = unique(st.builds(TpEntry, names, styles))
pp_entries = st.lists(st.builds(PpEntry, names, words, words), max_size=4, unique_by=lambda e: e.module).map(tuple)
plans = st.builds(Plan, tp=tp_entries, pp=pp_entries, ep=tp_entries, head_tp=tp_entries, head_pp=pp_entries)


@given(names)
def test_keys_match_as_transformers_matches_them(name: str) -> None:
    assert generic(name) == vars(tensor_parallel)["replace_layer_number_by_wildcard"](name)


@given(names)
def test_a_pattern_is_its_own_pattern_unless_numbers_were_consecutive(name: str) -> None:
    once = generic(name)
    assert generic(generic(once)) == generic(once) or ".*." in once


@given(plans)
def test_a_plan_reads_back(plan: Plan) -> None:
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@given(plans)
def test_what_suggest_prints_is_a_plan_file_too(plan: Plan) -> None:
    assert Plan.from_json({"model": "llama", "plan": plan.to_json(), "degrees": [1, 2]}) == plan


@given(plans, names, styles, styles)
def test_an_edit_undoes_itself(plan: Plan, pattern: str, old: str, new: str) -> None:
    pattern = f"model.{pattern}"
    have = plan.styles("model").get(pattern)
    edited = plan.edited(Edit(pattern, have, new), "model")
    assert edited.styles("model") == plan.styles("model") | {pattern: new}
    assert edited.edited(Edit(pattern, new, have), "model").styles("model") == plan.styles("model")


def test_an_edit_of_what_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="has None in this plan, not 'rowwise'"):
        Plan().edited(Edit("model.a", "rowwise", "colwise"), "model")


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (Edit("a", None, "rowwise"), 'add "a": "rowwise"'),
        (Edit("a", "rowwise", None), 'remove "a": "rowwise"'),
        (Edit("a", "rowwise", "colwise"), 'change "a" from "rowwise" to "colwise"'),
    ],
)
def test_an_edit_reads_as_an_instruction(edit: Edit, text: str) -> None:
    assert str(edit) == text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], f"a plan file holds one JSON object with the keys {', '.join(PLAN_KEYS)}, not list"),
        ({"tp": {}}, f"unknown plan key 'tp'; the keys are {', '.join(PLAN_KEYS)}"),
        ({"tp_plan": []}, "tp_plan must be an object, not list"),
        ({"tp_plan": {"lm_head": 3}}, "tp_plan['lm_head'] must be a style string such as 'colwise', not int"),
        ({"pp_plan": {"norm": ["x"]}}, "pp_plan['norm'] must be [[input names], [output names]], not ['x']"),
        ({"pp_plan": {"norm": ["x", "y"]}}, "pp_plan['norm'] must be [[input names], [output names]], not ['x', 'y']"),
    ],
)
def test_a_wrong_plan_file_says_what_is_wrong(value: object, message: str) -> None:
    with pytest.raises(PlanError) as raised:
        Plan.from_json(value)
    assert str(raised.value) == message


def test_absent_keys_are_empty() -> None:
    assert Plan.from_json({}) == Plan()


@pytest.mark.parametrize(
    ("prefix", "name", "joined"), [("", "a", "a"), ("m", "", "m"), ("m", "a.b", "m.a.b"), ("", "", "")]
)
def test_join(prefix: str, name: str, joined: str) -> None:
    assert join(prefix, name) == joined
