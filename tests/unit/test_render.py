"""What readers and scripts get: texts against golden files, JSON against its keys, Python by running it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from shardproof.planner.ir.degrees import Degrees, Limit, degrees_within
from shardproof.planner.ir.findings import Fault, Finding, Fix, Place, Severity, Source
from shardproof.planner.ir.plan import Edit, Plan, PpEntry, TpEntry
from shardproof.verify.report.environment import environment
from shardproof.verify.report.formats.json import report_json, suggestion_json
from shardproof.verify.report.formats.python import suggestion_python
from shardproof.verify.report.formats.text import finding_text, report_text
from shardproof.verify.report.report import LevelResult, Report
from shardproof.verify.report.suggestion import Suggested

GOLDEN = Path(__file__).parents[1] / "golden"

TWICE = Finding(
    code="TP205",
    severity=Severity.ERROR,
    message="The output of model.layers.0.mlp is reduced twice.",
    place=Place(
        entry="model.layers.*.mlp", module="model.layers.0.mlp", source=Source("models/llama/modeling_llama.py", 179)
    ),
    why="the sum of 2 equal values x is 2 x",
    found="R at the all-reduce",
    needed="P(sum)",
    fix=Fix("remove the second reduction", (Edit("model.layers.*.mlp", "all_reduce", None),)),
)
UNTOLD = Finding(
    code="TP210",
    severity=Severity.UNDECIDED,
    message="No rule tells what my_library.fused_scan does to S(2).\nIt is reached from two modules.",
    place=Place(module="model.layers.0.mixer"),
    fault=Fault.OURS,
)
REPORT = Report(
    "llama",
    (
        LevelResult("proof", 1.234, (TWICE,)),
        LevelResult("run", 12.5, (UNTOLD,), {"logits": 3e-14, "gradients": 2e-13}),
    ),
    {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "shardproof": "0.1.0"},
)
PLAN = Plan(
    tp=(
        TpEntry("layers.*.mlp.up_proj", "colwise", "output features are split: 11008"),
        TpEntry("layers.*.mlp.gate_proj", "colwise", "the same"),
        TpEntry("layers.*.mlp.extra_proj", "colwise", "the same"),
        TpEntry(
            "layers.*.mlp.down_proj",
            "rowwise",
            "contracts the features that up_proj splits: mul (modeling_llama.py:179) <- silu <- linear, so its output "
            "is a partial sum, which rowwise reduces",
        ),
    ),
    pp=(
        PpEntry("embed_tokens", ("input_ids",), ("inputs_embeds",)),
        PpEntry("layers", ("hidden_states", "attention_mask"), ("hidden_states",)),
    ),
    ep=(TpEntry("layers.*.mlp.experts", "ep_dispatch_experts"),),
    head_tp=(TpEntry("lm_head", "colwise_gather_output", "vocabulary"),),
    head_pp=(PpEntry("lm_head", ("hidden_states",), ("logits",)),),
    unplanned={"model.norm": "sees whole hidden states"},
)
SUGGESTED = Suggested(
    model="llama",
    config_class="LlamaConfig",
    model_class="LlamaForCausalLM",
    plan=PLAN,
    degrees=degrees_within((Limit(8, even=True, what="8 parts of 128", place=Place("layers.*.self_attn.k_proj")),)),
    sharded_fraction=0.987654321,
    tp=2,
    report=Report("llama", (LevelResult("proof", 1.0),), {}),
)


def check_golden(name: str, text: str) -> None:
    """The text against its file; to accept a change, write it there."""
    assert text + "\n" == (GOLDEN / name).read_text()


def test_report_text() -> None:
    check_golden("report.txt", report_text(REPORT, layout="tp 2", skipped="run    not started: an example"))


def test_suggestion_python() -> None:
    check_golden("suggestion.py.txt", suggestion_python(SUGGESTED))


def test_report_json() -> None:
    check_golden("report.json", report_json(REPORT))


def test_suggestion_json() -> None:
    check_golden("suggestion.json", suggestion_json(SUGGESTED))


def test_a_message_has_five_parts() -> None:
    lines = finding_text(TWICE).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["where", "why", "found", "needed", "next"]
    assert 'remove "model.layers.*.mlp": "all_reduce"' in lines[-1]


def test_without_an_edit_the_catalogue_says_what_to_do() -> None:
    assert "next    `plan verify MODEL --level run`" in finding_text(replace(UNTOLD, fault=Fault.PLAN))
    assert "next    `plan explain TP210` says more" in finding_text(UNTOLD)


def test_the_keys_of_a_report() -> None:
    data = json.loads(report_json(REPORT))
    assert set(data) == {"verdict", "levels", "findings", "environment", "degrees", "forbidden"}
    assert data["verdict"] == "refuted"
    assert data["levels"] == {
        "proof": {"verdict": "refuted", "seconds": 1.234},
        "run": {"verdict": "not proved", "seconds": 12.5},
    }
    keys = {"code", "name", "severity", "message", "entry", "module", "source", "fix"}
    assert all(keys <= set(finding) for finding in data["findings"])
    assert data["findings"][0]["name"] == "reduced-twice"
    assert data["findings"][0]["source"] == "models/llama/modeling_llama.py:179"
    assert data["findings"][0]["fix"]["edits"] == [{"pattern": "model.layers.*.mlp", "old": "all_reduce", "new": None}]
    assert data["findings"][1]["fix"] is None


def test_the_keys_of_a_suggestion() -> None:
    data = json.loads(suggestion_json(SUGGESTED))
    keys = {"model", "plan", "degrees", "forbidden", "verdict", "findings", "unplanned", "sharded_fraction"}
    assert set(data) == keys
    assert data["verdict"] == "proved"
    assert Plan.from_json(data).to_json() == PLAN.to_json()


def test_json_is_json_where_an_error_is_infinite() -> None:
    level = LevelResult("run", 1.0, (TWICE,), {"logits": math.inf})
    assert json.loads(report_json(Report("llama", (level,))))["verdict"] == "refuted"
    assert "inf" not in report_text(Report("llama", (level,)), layout="tp 2")


def test_the_python_runs_and_is_the_plan() -> None:
    names: dict[str, object] = {}
    exec(suggestion_python(SUGGESTED), names)
    have = {key: names.get(key) for key in PLAN.to_json() if key.startswith("base_")}
    have |= {"tp_plan": names["_tp_plan"], "pp_plan": names["_pp_plan"]}
    assert Plan.from_json(have).to_json() == PLAN.to_json()
    pipeline = names["base_model_pp_plan"]
    assert isinstance(pipeline, dict)
    assert all(isinstance(value, tuple) for value in pipeline.values())


@pytest.mark.parametrize("plan", [Plan(), Plan(pp=PLAN.pp)])
def test_an_empty_part_is_left_out(plan: Plan) -> None:
    text = suggestion_python(Suggested("m", "C", "M", plan, Degrees((1,), {}), 0.0, 2, Report("m", ())))
    assert "_tp_plan = " not in text
    assert "{\n}" not in text
    assert "No tensor-parallel entry was found" in text
    exec(text, {})


def test_the_environment_holds_versions_alone() -> None:
    have = environment()
    assert set(have) == {"python", "torch", "transformers", "shardproof"}
    assert all("/" not in value for value in have.values())
