"""The backend contract on variants of one model: each fault by its rule and its line, no right model accused."""

from pathlib import Path

import pytest

from shardproof import check
from shardproof.planner.ir.findings import Severity
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.load import load
from tests.zoo.contract_variants import VARIANTS, Variant

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
