"""The backend contract on variants of one model: each fault by its rule and its line, no right model accused."""

from pathlib import Path

import pytest

from shardproof import check
from shardproof.planner.ir.errors import LoadError
from shardproof.planner.ir.findings import Severity
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.programs import on_meta, subject_of
from shardproof.planner.twins.twin import twin
from shardproof.verify.clients.check import check_unloadable
from shardproof.verify.clients.contract.served import check_served
from shardproof.verify.clients.registry import find_dialect
from tests.zoo.contract_variants import CALL, IN_BLOCK, SCORES, VARIANTS, Variant

CLIENTS = ("transformers", "vllm", "sglang")


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_fault_is_found_and_a_right_model_is_not_accused(variant: Variant, tmp_path: Path) -> None:
    place = variant.written(tmp_path)
    findings = check(load(str(place), trust_remote_code=True), Plan(), clients=CLIENTS).findings
    said = [f"{finding.code} {finding.place.source} {finding.message}" for finding in findings]
    if variant.right:
        assert not findings, said
        return
    found = [f for f in findings if f.code in variant.codes and f.severity is not Severity.UNDECIDED]
    assert found, said
    lines = variant.fault_lines(place)
    assert not lines or any(f.place.source is not None and f.place.source.line in lines for f in found), said


def test_a_soft_cap_that_is_told_is_right_for_vllm_alone(tmp_path: Path) -> None:
    """What the finding of a soft-cap asks for is applied, and the model is checked again."""
    capped = "    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)\n"
    edits = (
        (SCORES, SCORES + capped),
        ("scaling, dropout=0.0, **kwargs):", "scaling, dropout=0.0, softcap=None, **kwargs):"),
        (CALL, CALL.replace("**kwargs", "softcap=self.config.attn_logit_softcapping, **kwargs")),
        ("    _supports_sdpa = True\n", "    _supports_sdpa = False\n"),
    )
    place = Variant("told", edits, config=(("attn_logit_softcapping", 2.0),)).written(tmp_path)
    loaded = load(str(place), trust_remote_code=True)
    assert not check(loaded, Plan(), clients=("transformers", "vllm")).findings
    assert {finding.code for finding in check(loaded, Plan(), clients=("sglang",)).findings} == {"BE407"}


def test_vllm_of_old_needs_the_keywords(tmp_path: Path) -> None:
    dropped = Variant("dropped", ((IN_BLOCK, IN_BLOCK.replace(", **kwargs", "")),)).written(tmp_path)
    loaded = load(str(dropped), trust_remote_code=True)
    report = check(loaded, Plan(), clients=("vllm@0.25", "vllm@0.32"))
    severities = [[finding.severity for finding in level.findings] for level in report.levels]
    assert severities == [[Severity.ERROR], [Severity.WARNING]]


def test_a_class_that_cannot_be_loaded_is_a_finding(tmp_path: Path) -> None:
    kinds = {"AutoConfig": "configuration_finch.FinchConfig", "AutoModel": "modeling_finch.FinchModel"}
    auto_map = kinds | {"AutoModelForCausalLM": "configuration_finch.FinchConfig"}
    place = Variant("unloadable", config=(("auto_map", auto_map),)).written(tmp_path)
    with pytest.raises(LoadError):
        load(str(place), trust_remote_code=True)
    report = check_unloadable(str(place), clients=("vllm",), trust_remote_code=True)
    assert report is not None
    assert {finding.code for finding in report.findings} == {"BE422"}


@pytest.mark.parametrize(
    ("name", "code", "accused", "right"),
    [
        ("gemma2", "BE409", "0.25", "0.32"),  # a soft-cap of the logits
        ("aria_text", "BE420", "0.32", "0.33"),  # `moe_topk`
        ("phi", "BE410", "0.24", "0.25"),  # a head with a bias
    ],
)
def test_a_version_of_vllm_is_asked_for_what_it_reads_itself(name: str, code: str, accused: str, right: str) -> None:
    subject = subject_of(on_meta(twin(load(name), tp=2, pp=1)))
    contracts = [find_dialect(f"vllm@{version}").contract for version in (accused, right)]
    told = [check_served(subject.model, subject.graph, subject.prefix, one) for one in contracts if one is not None]
    assert [code in {finding.code for finding in findings} for findings in told] == [True, False]


def test_vllm_of_old_has_no_attention_sinks() -> None:
    report = check(twin(load("gpt_oss"), tp=2, pp=1), Plan(), clients=("vllm@0.25", "vllm@0.32"))
    told = [any("attention sinks" in finding.message for finding in level.findings) for level in report.levels]
    assert told == [True, False]
