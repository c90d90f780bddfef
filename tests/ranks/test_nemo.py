"""NeMo AutoModel itself, in the interpreter that `SHARDPROOF_NEMO_PYTHON` names: what was read of it, and steps on two ranks."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from shardproof.launch.authoring.tool_forms import ToolForm, in_form
from shardproof.launch.clients.checkpoint import write_checkpoint
from shardproof.launch.clients.client_ranks import ClientRanks, ClientStep
from shardproof.launch.clients.confirm import confirm_in_ranks
from shardproof.launch.commands.suggestion.suggest_plan import suggest_plan
from shardproof.launch.output.console import Progress
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.ir.plan import Plan
from shardproof.planner.ir.styles import STYLES
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.verify.clients.nemo.own_plans import LLAMA_NAMES, OWN_PLANS
from shardproof.verify.clients.registry import find_dialect

NEMO = "SHARDPROOF_NEMO_PYTHON"
installed = pytest.mark.skipif(NEMO not in os.environ, reason=f"{NEMO} names no interpreter")
SIZES = {"num_hidden_layers": "2", "hidden_size": "32", "num_attention_heads": "4", "num_key_value_heads": "2"}
SIZES |= {"intermediate_size": "48", "vocab_size": "128"}

ASKED = """
import importlib, json, sys
from torch import nn
from torch.distributed.tensor import Replicate
from nemo_automodel.components.distributed import optimized_tp_plans as own, parallelizer

def said(key, style):
    kind = type(style).__name__
    if kind == "ReplicatedWithGradAllReduce":
        return "replicated_with_grad_allreduce"
    taken, given = style.input_layouts[0], style.output_layouts[0]
    if "Colwise" in kind:
        return "colwise_gather_output" if given == Replicate() or not style.use_local_output else "colwise"
    split = "embedding_rowwise" if key.endswith("embed_tokens") else "rowwise_split_input"
    return split if taken == Replicate() else "rowwise"

class Carrier(nn.Module):
    pass

def read(style):
    model = Carrier()
    model._tp_plan = {"a": style, "model.embed_tokens": "rowwise_rep"}
    try:
        found = parallelizer.get_hf_tp_shard_plan(model)
    except ValueError:
        return None
    return said("a", found["a"]) if "a" in found and style != "sequence_parallel" else style if "a" in found else "replicate"

plans = {}
for name, function in own.PARALLELIZE_FUNCTIONS.items():
    module, _, kind = name.rpartition(".")
    other = own._parallelize_qwen_classification, own._parallelize_qwen3_5_vlm
    if module.startswith("transformers.models.") and function not in other:
        model = object.__new__(getattr(importlib.import_module(module), kind))
        vars(model)["config"] = type("Config", (), {"qk_layernorm": False})
        plans[name.removeprefix("transformers.models.")] = {key: said(key, one) for key, one in function(model).items()}
names = {key: said(key, one) for key, one in parallelizer._get_parallel_plan(Carrier()).items()}
print(json.dumps({"styles": {style: read(style) for style in sys.argv[1:]}, "plans": plans, "names": names}))
"""


@installed
def test_the_installed_nemo_is_the_one_that_was_read() -> None:
    dialect = find_dialect("nemo")
    names = sorted({*STYLES, *dialect.styles})
    command = [os.environ[NEMO], "-W", "ignore", "-c", ASKED, *names]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=200).stdout)
    assert {style: effect for style, effect in found["styles"].items() if effect is not None} == dict(dialect.styles)
    assert found["names"] == dict(LLAMA_NAMES)
    # Between these two layers NeMo passes a distributed tensor, so that what is local here is whole there.
    found["plans"]["phi3.modeling_phi3.Phi3ForCausalLM"]["model.layers.*.mlp.down_proj"] = "rowwise_split_input"
    assert found["plans"] == {name: dict(plan) for name, plan in OWN_PLANS.items()}


def small(name: str, **more: str) -> tuple[LoadedModel, Plan]:
    loaded = load(name, overrides={**SIZES, **more})
    return loaded, carried_plan(loaded, build(loaded))


@installed
def test_its_own_plan_trains_as_one_device_does() -> None:
    loaded, plan = small("qwen3", head_dim="8")
    result = confirm_in_ranks(loaded, plan, "nemo", tp=2, python=os.environ[NEMO], timeout=200)
    assert result.verdict is Verdict.CONFIRMED, result.findings
    assert set(result.measures) == {"loss", "logits", "gradients, relative", "parameters after a step"}


@installed
def test_the_plan_in_place_of_one_that_it_cannot_read_trains_wrongly() -> None:
    """Without an error: gate and up are one projection, of which each rank gets half."""
    loaded, plan = small("glm", head_dim="8", pad_token_id="0")
    result = confirm_in_ranks(loaded, plan, "nemo", tp=2, python=os.environ[NEMO], timeout=200)
    assert result.verdict is Verdict.REFUTED
    assert [finding.code for finding in result.findings] == ["BE451"]


@installed
@pytest.mark.parametrize("form", [ToolForm.NEMO, ToolForm.PARALLELIZE], ids=str)
def test_a_printed_plan_as_tp_plan(form: ToolForm, tmp_path: Path) -> None:
    """Torch's form is right in the forward, and its hook that sums gradients is lost in FSDP's wrapping."""
    loaded, _ = small("qwen3", head_dim="8")
    suggested = suggest_plan(loaded, progress=Progress(quiet=True), client="parallelize_module", tp=2)
    made, suggested = in_form(loaded, suggested, form)
    assert suggested.report.verdict is Verdict.PROVED
    write_checkpoint(loaded, tmp_path)
    with ClientRanks(os.environ[NEMO], timeout=200) as ranks:
        (result,) = ranks.run((ClientStep(tmp_path, "nemo", {}, 2, recipe_plan=made.text),))
    assert not result.error
    assert result.differences["logits"] < 1e-4
    assert (result.differences["gradients, relative"] < 1e-3) is (form is ToolForm.NEMO)


def test_nemo_that_is_not_installed_is_one_sentence() -> None:
    loaded, plan = small("llama")
    result = confirm_in_ranks(loaded, plan, "nemo", tp=2, timeout=200)
    assert result.verdict is Verdict.NOT_PROVED
    assert result.findings[0].message == "nemo at tp 2 fails: ModuleNotFoundError: No module named 'nemo_automodel'"
