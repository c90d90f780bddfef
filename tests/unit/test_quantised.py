"""A quantised checkpoint is never proved by the weights that it had before; a block that a rank's part cuts is refuted."""

from dataclasses import replace

import pytest
import torch
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from shardproof.launch.ranks.confirm import confirm_cases
from shardproof.launch.ranks.threads import ThreadRanks
from shardproof.planner.ir.findings import Severity, Verdict
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.tracing.programs import on_meta, subject_of
from shardproof.planner.twins.quantised import quantised_state, quantised_twin
from shardproof.planner.twins.random_state import random_state
from shardproof.planner.twins.twin import twin
from shardproof.planner.weights.block_layout import refused_by_quantiser
from shardproof.verify.proof.degrees import legal_degrees
from shardproof.verify.proof.prove import prove, quantised_findings
from shardproof.verify.stages.case import Case

SMALL = {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32}
MOE = {
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 32,
    "num_local_experts": 4,
    "vocab_size": 96,
}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]}


def quantised(intermediate: int, config: dict[str, object] | None) -> LoadedModel:
    loaded = load("qwen3", overrides={**SMALL, "intermediate_size": intermediate})
    if config is not None:
        loaded.config.quantization_config = config
    return loaded


@pytest.mark.parametrize(
    ("intermediate", "tp", "config", "verdict", "words"),
    [
        (512, 2, None, Verdict.PROVED, ""),
        (512, 2, FP8, Verdict.PROVED, ""),
        (512, 2, FP8 | {"modules_to_convert": ["embed_tokens"]}, Verdict.NOT_PROVED, "quantised (fp8)"),
        (512, 2, FP8 | {"modules_to_not_convert": []}, Verdict.REFUTED, "of lm_head"),
        (384, 2, FP8, Verdict.REFUTED, "holds 192 out_features of model.layers.0.mlp.gate_proj"),
        (512, 4, FP8, Verdict.REFUTED, "holds 64 out_features of model.layers.0.self_attn.q_proj"),
        (512, 2, {"quant_method": "bitsandbytes", "load_in_4bit": True}, Verdict.NOT_PROVED, "(bitsandbytes)"),
        (512, 2, {"quant_method": "nvfp4"}, Verdict.REFUTED, "does not support tensor parallelism"),
        (512, 1, {"quant_method": "nvfp4"}, Verdict.PROVED, ""),
        (512, 2, {"bits": 4}, Verdict.NOT_PROVED, "a method that its config does not name"),
        (512, 2, {"quant_method": "awq", "bits": 4, "group_size": 256}, Verdict.REFUTED, "blocks of 256"),
    ],
)
def test_a_proof(intermediate: int, tp: int, config: dict[str, object] | None, verdict: Verdict, words: str) -> None:
    result = prove(quantised(intermediate, config), tp=tp)
    assert result.verdict is verdict
    assert all(finding.code == "TP222" and words in finding.message for finding in result.findings)


@pytest.mark.parametrize("method", sorted({*AUTO_QUANTIZER_MAPPING, "bitsandbytes", "another"} - {"nvfp4"}))
def test_no_method_is_proved_by_the_weights_that_it_packs(method: str) -> None:
    loaded = load("mixtral", overrides={**MOE, "intermediate_size": 512})
    loaded.config.quantization_config = {"quant_method": method}
    subject = subject_of(on_meta(loaded))
    plan = {"layers.*.mlp.experts.gate_up_proj": "packed_colwise", "layers.*.self_attn.q_proj": "colwise"}
    for entry, style in plan.items():
        found = quantised_findings(subject, Plan(tp=(TpEntry(entry, style),)), 2)
        if method != "mxfp4" or "experts" in entry:  # which packs experts alone
            assert [one.code for one in found] == ["TP222"]
            assert f"({method})" in found[0].message


@pytest.mark.parametrize("method", ["sinq", "metal", "fbgemm_fp8", "bitnet"])
def test_a_stack_is_packed_where_weights_are(method: str) -> None:
    loaded = load("mixtral", overrides={**MOE, "intermediate_size": 512})
    loaded.config.quantization_config = {"quant_method": method, "modules_to_not_convert": ["embed_tokens", "lm_head"]}
    subject = subject_of(on_meta(loaded))
    plan = Plan(tp=(TpEntry("layers.*.mlp.experts.gate_up_proj", "packed_colwise"),))
    assert [one.code for one in quantised_findings(subject, plan, 2)] == ["TP222"]
    loaded.config.quantization_config["modules_to_not_convert"] += ["experts"]
    assert not quantised_findings(subject_of(on_meta(replace(loaded))), plan, 2)


@pytest.mark.parametrize(("intermediate", "block", "legal"), [(512, 64, (1, 2, 4)), (384, 128, (1,))])
def test_degrees_count_blocks(intermediate: int, block: int, legal: tuple[int, ...]) -> None:
    model = quantised(intermediate, {**FP8, "weight_block_size": [block, block]})
    found = legal_degrees(model, carried_plan(model, on_meta(model)))
    assert found.legal == legal
    assert "whole blocks" in found.forbidden[8].what


@pytest.mark.parametrize(
    ("intermediate", "ep", "verdict", "words"),
    [
        (512, 1, Verdict.PROVED, ""),
        (384, 1, Verdict.REFUTED, "192 out_features of model.layers.0.mlp.experts.gate_up_proj"),
        (384, 2, Verdict.PROVED, ""),
    ],
)
def test_stacked_experts_are_cut_in_whole_blocks_or_not_at_all(
    intermediate: int, ep: int, verdict: Verdict, words: str
) -> None:
    loaded = load("mixtral", overrides={**MOE, "intermediate_size": intermediate})
    loaded.config.quantization_config = dict(FP8)
    result = prove(loaded, tp=2, ep=ep)
    assert result.verdict is verdict
    assert all(words in finding.message for finding in result.findings)


@pytest.mark.parametrize(("ep", "stack"), [(1, ("packed_colwise", "rowwise")), (2, ("grouped_gemm", "grouped_gemm"))])
def test_ranks_read_their_part_of_stacked_experts(ep: int, stack: tuple[str, str]) -> None:
    loaded = load("mixtral", overrides={**MOE, "intermediate_size": 512})
    loaded.config.quantization_config = dict(FP8)
    plan = carried_plan(loaded, on_meta(loaded))
    styles = {entry.pattern: entry.style for entry in (plan.ep if ep > 1 else plan.tp)}
    assert (styles["layers.*.mlp.experts.gate_up_proj"], styles["layers.*.mlp.experts.down_proj"]) == stack
    small = quantised_twin(loaded, twin(loaded, tp=2), tp=2)
    (result,) = confirm_cases((Case(small, plan, 2, ep=ep),), engine="inprocess")
    assert result.verdict is Verdict.CONFIRMED
    assert result.measures["weights"] == 0.0


KEPT = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]


@pytest.mark.parametrize(
    ("styles", "kept", "known"),
    [
        ({"layers.*.self_attn.o_proj": "rowwise_split_input"}, KEPT, True),
        ({"layers.*.self_attn.o_proj": "rowwise_split_input"}, [], True),  # it packs experts only
        ({"layers.*.mlp.experts.gate_up_proj": "grouped_gemm"}, KEPT, False),
    ],
)
def test_what_is_packed_and_whole_on_every_rank_is_right(styles: dict[str, str], kept: list[str], known: bool) -> None:
    loaded = load("gpt_oss", overrides={**MOE, "intermediate_size": 64})
    loaded.config.quantization_config = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    plan = Plan.from_json({"base_model_tp_plan": styles})
    result = prove(loaded, plan, tp=2)
    assert ("TP222" not in [finding.code for finding in result.findings]) is known
    assert (result.verdict is Verdict.PROVED) is known
    assert result.scope is not None
    assert "a layer in mxfp4 computes what its dequantised weights do" in result.scope.assumptions


@pytest.mark.parametrize(
    ("intermediate", "config", "verdict", "words"),
    [
        (384, FP8, Verdict.REFUTED, "holds 192 out_features"),
        (512, {"quant_method": "nvfp4"}, Verdict.REFUTED, "does not support tensor parallelism"),
        (512, {"quant_method": "bitsandbytes"}, Verdict.NOT_PROVED, "was not looked at"),
    ],
)
def test_a_run_says_what_a_plain_twin_cannot(
    intermediate: int, config: dict[str, object], verdict: Verdict, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shardproof.launch.ranks import confirm

    monkeypatch.setattr(confirm, "runner_for", lambda case, *_: ThreadRanks(case.tp, 60.0))
    result = confirm.confirm(quantised(intermediate, dict(config)), tp=2)
    assert result.verdict is verdict
    assert any(finding.code == "TP222" and words in finding.message for finding in result.findings)


def test_the_ranks_of_a_quantised_twin_read_their_part_of_weights_and_scales() -> None:
    """Both ranks dequantise to the weights of one device; with the scales of the other half they would not."""
    model = quantised(512, dict(FP8))
    small = quantised_twin(model, twin(model, tp=2), tp=2)
    plan = carried_plan(model, on_meta(model))
    state = quantised_state(on_meta(small), random_state(build(small, device="cpu")))
    weight, scale = state["model.layers.0.mlp.down_proj.weight"], state["model.layers.0.mlp.down_proj.weight_scale_inv"]
    block = small.config.quantization_config["weight_block_size"][0]
    assert weight.dtype is torch.float8_e4m3fn
    assert block > 1
    assert [size // block for size in weight.shape] == list(scale.shape)
    assert not any("lm_head" in name and "scale" in name for name in state)
    (result,) = confirm_cases((Case(small, plan, 2),), engine="inprocess")
    assert result.verdict is Verdict.CONFIRMED
    assert result.measures["weights"] == 0.0


def test_what_a_quantiser_does_not_say_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version whose quantiser asks for more than a plan and a degree was not read: nothing is proved of it."""
    model = quantised(512, dict(FP8))
    assert refused_by_quantiser(model.config, 2) == ""

    def asks_for_more(self: object, *_: object) -> None:
        raise AttributeError("pre_quantized")

    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "update_parallel_plan", asks_for_more, raising=False)
    assert refused_by_quantiser(model.config, 2) is None
    (found,) = prove(model, tp=2).findings
    assert (found.code, found.severity) == ("TP222", Severity.UNDECIDED)
