"""Adapters of PEFT: the plan of the adapted model, its proof and run, the base model's plan as PEFT reads it, bad folders."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from shardproof.launch.ranks.confirm import confirm_cases
from shardproof.planner.inference.suggest import suggest
from shardproof.planner.ir.errors import LoadError
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.tracing.programs import on_meta
from shardproof.planner.twins.twin import twin
from shardproof.verify.proof.prove import prove
from shardproof.verify.run.reference import single_device
from shardproof.verify.stages.case import Case

peft = pytest.importorskip("peft", reason="adapters need the package peft")

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 96,
}
SMALL: dict[str, Any] = {**SIZES, "num_hidden_layers": 2, "head_dim": 8}
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"]}


def folder(at: Path, fields: Mapping[str, object]) -> str:
    at.mkdir(exist_ok=True)
    (at / "adapter_config.json").write_text(json.dumps(fields))
    return str(at)


def llama(*adapters: str) -> LoadedModel:
    return load("llama", overrides=SMALL, adapters=adapters)


def of_attention(plan: Plan) -> dict[str, str]:
    return {
        entry.pattern.removeprefix("layers.*.self_attn."): entry.style for entry in plan.tp if "attn" in entry.pattern
    }


def test_the_plan_of_lora_follows_its_base_layers_and_is_confirmed(tmp_path: Path) -> None:
    model = llama(folder(tmp_path / "one", {**LORA, "use_rslora": True, "lora_dropout": 0.1}))
    plan = suggest(model).plan
    assert of_attention(plan) == {
        "q_proj.base_layer": "colwise",
        "q_proj.lora_B.default": "colwise",
        "k_proj": "colwise",
        "v_proj": "colwise",
        "o_proj.base_layer": "rowwise",
        "o_proj.lora_A.default": "rowwise",
    }
    assert of_attention(carried_plan(model, on_meta(model))) == of_attention(plan)
    proof = prove(model, plan)
    assert proof.verdict is Verdict.PROVED
    assert proof.scope is not None
    assert any("PEFT" in assumed for assumed in proof.scope.assumptions)
    small = twin(model, tp=2)
    lame = Plan(tuple(entry for entry in plan.tp if "q_proj.lora_B" not in entry.pattern), head_tp=plan.head_tp)
    assert prove(model, lame).verdict is Verdict.REFUTED
    right, wrong = confirm_cases((Case(small, plan, 2), Case(small, lame, 2)), engine="inprocess")
    assert right.verdict is Verdict.CONFIRMED
    assert "gradient" in right.measures
    assert wrong.verdict is Verdict.REFUTED


def test_an_adapter_of_some_layers_leaves_no_half_of_a_group(tmp_path: Path) -> None:
    """`q_proj` is a linear layer in one layer and a wrapper in the other: its entry raises the gradient twice there."""
    fields = {**LORA, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0]}
    model = llama(folder(tmp_path / "one", fields))
    plan = suggest(model).plan
    assert {style for name, style in of_attention(plan).items()} <= {"colwise_gather_output"}
    assert prove(model, plan).verdict is Verdict.PROVED


def test_two_adapters_are_computed_at_once(tmp_path: Path) -> None:
    second = {**LORA, "r": 2, "target_modules": ["q_proj", "v_proj"]}
    plan = of_attention(suggest(llama(folder(tmp_path / "one", LORA), folder(tmp_path / "2nd.half", second))).plan)
    factors = {name: style for name, style in plan.items() if "lora_B" in name or name == "o_proj.lora_A.default"}
    assert factors == {
        "q_proj.lora_B.default": "colwise",
        "q_proj.lora_B.a_2nd_half": "colwise",
        "v_proj.lora_B.a_2nd_half": "colwise",
        "o_proj.lora_A.default": "rowwise",
    }


def test_dora_on_a_sharded_base_layer_is_refuted(tmp_path: Path) -> None:
    result = prove(llama(folder(tmp_path / "dora", {**LORA, "use_dora": True})))
    assert result.verdict is Verdict.REFUTED
    assert "q_proj" in str(result.findings[0].place.module)


def test_a_peft_model_is_its_base_model_with_adapters() -> None:
    config = LlamaConfig(**SMALL)
    made = peft.get_peft_model(LlamaForCausalLM(config), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    model = load(made)
    assert model.base_class is LlamaForCausalLM
    assert twin(model, tp=2).adapters
    names = {name for name, value in on_meta(model).named_parameters() if value.requires_grad}
    assert "model.layers.1.self_attn.q_proj.lora_B.default.weight" in names
    assert all("lora_" in name for name in names)
    assert pickle.loads(pickle.dumps(model)).model_class is model.model_class


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (None, "holds no adapter_config.json"),
        ([], "holds one JSON object, not a list"),
        ({**LORA, "peft_type": "LORRA"}, "has no method 'LORRA' (peft_type). Did you mean LORA"),
        ({**LORA, "target_modules": ["q_proj", "w1"]}, "no module of llama is called w1"),
        ({**LORA, "target_modules": ".*nothing"}, "PEFT cannot put it into llama"),
        ({**LORA, "auto_mapping": {"base_model_class": "GPT2LMHeadModel"}}, "it was trained on GPT2LMHeadModel"),
        ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}, "PEFT cannot put it into llama"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_sentence(tmp_path: Path, fields: object, words: str) -> None:
    if fields is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    with pytest.raises(LoadError) as raised:
        llama(str(tmp_path))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_weights_of_another_base_model_are_told(tmp_path: Path) -> None:
    config = LlamaConfig(**{**SMALL, "hidden_size": 64})
    made = peft.get_peft_model(LlamaForCausalLM(config), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    made.save_pretrained(tmp_path)
    with pytest.raises(LoadError, match=r"lora_A.weight has the shape \[4, 64\], and llama needs \[4, 32\]"):
        llama(str(tmp_path))
    made = peft.get_peft_model(LlamaForCausalLM(LlamaConfig(**SMALL)), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    made.save_pretrained(tmp_path)
    assert llama(str(tmp_path)).adapters


def saved(at: Path, name: str, **fields: Any) -> Path:
    """An adapter of a small Llama, saved by PEFT, none of whose factors is zero."""
    made = peft.get_peft_model(LlamaForCausalLM(LlamaConfig(**SMALL)), peft.LoraConfig(r=4, **fields))
    with torch.no_grad():
        for value in (value for value in made.parameters() if value.requires_grad):
            value.normal_(0, 0.1)
    made.save_pretrained(at / name)
    return at / name


def test_a_checkpoint_and_its_adapters_are_what_peft_loads(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(tmp_path / "base")
    folders = [
        saved(tmp_path, "one", target_modules=["q_proj"], modules_to_save=["lm_head"]),
        saved(tmp_path, "two", target_modules=["q_proj", "down_proj"], use_rslora=True),
    ]
    loaded = load(str(tmp_path / "base"), adapters=[str(one) for one in folders])
    model = single_device(Case(loaded, carried_plan(loaded, on_meta(loaded)), weights=True), torch.device("cpu"))
    want = peft.PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path / "base"), folders[0])
    want.load_adapter(folders[1], adapter_name="two")
    want.base_model.set_adapter(["default", "two"])
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, want.eval()(input_ids=ids).logits, rtol=0, atol=0)


def test_an_adapter_without_weights_is_not_run_with_random_ones(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(tmp_path / "base")
    loaded = load(str(tmp_path / "base"), adapters=[folder(tmp_path / "one", LORA)])
    with pytest.raises(
        LoadError, match=r"--adapter one: there is no adapter_model.safetensors to run; drop --weights."
    ):
        single_device(Case(loaded, carried_plan(loaded, on_meta(loaded)), weights=True), torch.device("cpu"))
    file = saved(tmp_path, "half", target_modules=["q_proj"]) / "adapter_model.safetensors"
    save_file(dict(list(load_file(file).items())[1:]), file)
    loaded = load(str(tmp_path / "base"), adapters=[str(file.parent)])
    with pytest.raises(
        ValueError, match=r"neither the checkpoint nor an adapter holds model.layers.0.self_attn.q_proj"
    ):
        single_device(Case(loaded, carried_plan(loaded, on_meta(loaded)), weights=True), torch.device("cpu"))
