"""Versions of Transformers: which are accepted, what is read from the installed one, and what is said where that is not known."""

import json
from collections.abc import Iterator

import pytest
from torch import nn
from transformers.distributed import tensor_parallel

from shardproof.launch.cli import run
from shardproof.planner.inference.suggest import suggest
from shardproof.planner.inputs import run_modes
from shardproof.planner.ir.findings import Severity, Verdict
from shardproof.planner.ir.plan import Plan
from shardproof.planner.judge import Untraced, judge
from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.programs import subject_of
from shardproof.planner.transformers_facts import styles, version
from shardproof.planner.transformers_facts.tables import style_without_entry
from shardproof.planner.transformers_facts.version import NEWEST, VersionError, is_least, is_tested, untested_warning
from shardproof.verify.clients.prove import prove_for
from shardproof.verify.clients.registry import find_dialect
from shardproof.verify.clients.vllm import symbolic_trace
from shardproof.verify.proof.prove import prove
from shardproof.verify.report.formats.json import report_json
from shardproof.verify.report.report import Report
from shardproof.verify.run.verdicts import unasked_finding

SMALL = {"num_hidden_layers": "2"}


@pytest.mark.parametrize(
    ("found", "tested"), [("5.16.0", True), ("5.24.9", True), ("5.25.0.dev0", False), ("6.0.0", False)]
)
def test_a_version_above_the_newest_tested_one_is_told_once(
    found: str, tested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "installed", lambda: found)
    assert is_tested(found) is tested
    assert bool(untested_warning()) is not tested
    assert tested or untested_warning().startswith(f"Transformers {found} is newer than ")


def test_a_version_below_the_floor_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(version, "installed", lambda: "5.15.1")
    with pytest.raises(VersionError):
        untested_warning()
    assert run(["suggest", "llama"]) == 2
    assert capsys.readouterr().err == (
        'plan: Transformers 5.15.1 is installed, and 5.16 is the oldest that works: `pip install "transformers>=5.16"`.\n'
    )


@pytest.mark.parametrize(("found", "tested"), [("5.24.0", True), ("5.25.0.dev0", False)])
def test_json_says_whether_the_version_was_tested(found: str, tested: bool) -> None:
    report = json.loads(report_json(Report("llama", (), {"transformers": found})))
    assert report["environment"] == {"transformers": found, "tested": tested}


def test_the_installed_version_was_tested() -> None:
    assert is_tested(version.installed())
    assert is_least(NEWEST) is (version.minor_text() == ".".join(map(str, NEWEST)))


def test_the_table_without_an_entry_is_read_from_the_library() -> None:
    assert style_without_entry() == ("embedding_rowwise" if is_least((5, 21)) else "")


def test_parts_of_experts_may_differ_where_those_of_linear_layers_may_not() -> None:
    """Run with 5.16.1 on two ranks: deepseek_v2 with 15 features per expert is right, gradients too."""
    assert styles.parts_alike("colwise", nn.Linear(3, 3)) is not is_least((5, 21))
    assert not styles.parts_alike("moe_tp_experts", nn.Module())
    assert not styles.parts_alike("embedding_rowwise", nn.Embedding(3, 3))
    model = load("mixtral", overrides={**SMALL, "intermediate_size": "15"})
    assert prove(model).verdict is Verdict.PROVED


@pytest.fixture
def without_all_reduce(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A library that lacks two of the styles that a plan could have."""
    registry = type(vars(tensor_parallel)["ALL_PARALLEL_STYLES"])
    for name in ("packed_colwise", "all_reduce"):
        monkeypatch.delitem(registry._global_mapping, name)
    for kept in (styles.registered, styles.modelled):
        kept.cache_clear()
    yield
    for kept in (styles.registered, styles.modelled):
        kept.cache_clear()


@pytest.mark.usefixtures("without_all_reduce")
def test_a_style_that_the_library_lacks_is_refuted_and_not_suggested() -> None:
    model = load("mixtral", overrides=SMALL)
    plan = Plan.from_json({"base_model_tp_plan": {"layers.*.mlp": "all_reduce"}})
    (finding,) = prove(model, plan).findings
    assert (finding.code, finding.message) == (
        "PL101",
        f'"all_reduce" is not a style of Transformers {version.minor_text()}.',
    )
    made = suggest(model).plan
    assert "packed_colwise" not in {entry.style for entry in made.tp}
    assert prove(model, made).verdict is Verdict.PROVED


def test_decoding_that_cannot_be_asked_is_not_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_modes, "CACHE_NAMES", ("kept",))
    result = prove(load("llama", overrides=SMALL))
    assert result.verdict is Verdict.NOT_PROVED
    assert [one.message for one in result.findings] == [
        "decoding was not looked at: the forward takes use_cache, and no cache by a name that is known"
    ]


def test_a_question_that_was_put_to_no_one_is_undecided() -> None:
    assert unasked_finding("cached decode", "UnknownCacheError: x").severity is Severity.UNDECIDED
    assert unasked_finding("cached decode", "ValueError: x").severity is Severity.WARNING


def test_an_analysis_of_the_client_that_fails_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("co_varnames is too small for names")

    monkeypatch.setattr(symbolic_trace._Tracer, "trace", failing)
    result = prove_for(find_dialect("vllm"), load("llama", overrides=SMALL), Plan.from_json(LLAMA))
    assert result.verdict is Verdict.NOT_PROVED
    assert "is not known: the trace of its forward ended before it began" in result.findings[0].message


LLAMA = {"base_model_tp_plan": {"layers.*.mlp.gate_proj": "colwise", "layers.*.mlp.up_proj": "colwise"}}


def test_the_other_side_of_a_branch_need_not_read_every_parameter() -> None:
    """Experts up to Transformers 5.18 skip an id that is none of theirs: on that side nothing reads their weights."""
    model = build(load("llama", overrides=SMALL))
    model.unread = nn.Linear(8, 8, device="meta")
    subject = subject_of(model)
    (fault,) = judge(subject, {"unread": "colwise"}, 2).forward
    assert isinstance(fault, Untraced)
    assert not judge(subject, {"unread": "colwise"}, 2, one_side=True).faults
