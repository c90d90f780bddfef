"""Everything that is compared sees what only it can see; and whose fault something is."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NoReturn

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedConfig
from transformers import core_model_loading as conversions
from transformers.distributed import tensor_parallel as client

from shardproof.launch.ranks.confirm import confirm_cases
from shardproof.planner.ir.findings import Fault, Finding, Severity
from shardproof.planner.ir.plan import Edit, Plan, TpEntry
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import load
from shardproof.planner.twins.twin import twin
from shardproof.verify.diagnose import diagnosed
from shardproof.verify.run.inprocess import InProcess
from shardproof.verify.run.verdicts import findings_of
from shardproof.verify.stages.case import Case
from tests.ranks.planted import Wrong, planted

pytestmark = pytest.mark.timeout(240)

RECOMPUTED = "decoded logits against a full forward"
SEEN = {
    Wrong.WEIGHTS: ("DY506", {"weights", "gradient", "gradient in training", "saved weights"}),
    Wrong.HIDDEN: ("DY501", {"hidden states"}),
    Wrong.LOGITS: ("DY501", {"logits", RECOMPUTED}),
    Wrong.PADDED: ("DY501", {"left-padded logits"}),
    Wrong.RAGGED: ("DY501", {"ragged logits"}),
    Wrong.PREFILL: ("DY503", {"decoded logits", RECOMPUTED}),
    Wrong.DECODED: ("DY503", {"decoded logits", RECOMPUTED}),
    Wrong.GENERATED: ("DY503", {"generated tokens"}),
    Wrong.LOSS: ("DY501", {"loss"}),
    Wrong.GRADIENT: ("DY502", {"gradient"}),
    Wrong.SECOND: ("DY502", {"gradient of two backwards"}),
    Wrong.TRAINING_LOSS: ("DY501", {"loss in training"}),
    Wrong.TRAINING_GRADIENT: ("DY502", {"gradient in training"}),
    Wrong.EAGER: ("DY501", {"eager logits", "left-padded eager logits"}),
    Wrong.SAVED: ("DY506", {"saved weights"}),
}


def plan_of(name: str) -> Plan:
    """The plan that a type carries."""
    loaded = load(name)
    return carried_plan(loaded, build(loaded))


@pytest.fixture(scope="module")
def ranks() -> Iterator[InProcess]:
    with InProcess(2) as made:
        yield made


@pytest.mark.parametrize("wrong", Wrong)
def test_what_only_one_comparison_sees_is_seen(ranks: InProcess, wrong: Wrong) -> None:
    case = Case(twin(planted(wrong), tp=2), plan_of("llama"), tp=2)
    outcomes = ranks.check(case)
    differ = {one.what for outcome in outcomes.values() for one in outcome.comparisons if not one.right}
    assert (findings_of(case, outcomes)[0].code, differ) == SEEN[wrong]


def found(ranks: InProcess, case: Case) -> tuple[Finding, ...]:
    """What a run finds, looked into."""

    def run(other: Case) -> tuple[Finding, ...]:
        return findings_of(other, ranks.check(other))

    return diagnosed(case, run(case), run)


def test_a_conversion_that_the_client_makes_while_it_shards_is_compared(
    ranks: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts are stacked from a checkpoint that holds them one by one; here in a wrong order, on ranks only."""
    right: Callable[..., object] = conversions.MergeModulelist.convert

    def turned(self, given, *args, **kwargs):  # type: ignore[no-untyped-def]  # as the client's
        if torch.distributed.is_initialized():
            given = {name: values[::-1] if isinstance(values, list) else values for name, values in given.items()}
        return right(self, given, *args, **kwargs)

    case = Case(twin(load("mixtral"), tp=2), plan_of("mixtral"), tp=2)
    ranks.silent(case)  # the single-device model is asked before
    monkeypatch.setattr(conversions.MergeModulelist, "convert", turned)
    first = found(ranks, case)[0]
    assert (first.code, first.place.module) == ("DY506", "model.layers.0.mlp.experts")


def test_a_wrong_plan_is_the_plans_fault(ranks: InProcess) -> None:
    plan = plan_of("llama").edited(Edit("model.layers.*.mlp", None, "all_reduce"), "model")
    first = found(ranks, Case(twin(load("llama"), tp=2), plan, tp=2))[0]
    assert (first.fault, first.place.entry) == (Fault.PLAN, "model.layers.*.mlp")
    assert first.fix is not None


def test_a_style_that_somebody_wrote_on_purpose_is_doubted_last(ranks: InProcess) -> None:
    """Phi-3 gathers before the split of its input: where that split is lost, taking the gather away would mend it too."""
    plan = plan_of("phi3").edited(Edit("model.layers.*.mlp.down_proj", "rowwise_split_input", "rowwise"), "model")
    first = found(ranks, Case(twin(load("phi3"), tp=2), plan, tp=2))[0]
    assert first.fix is not None
    assert first.place.entry == "model.layers.*.mlp.down_proj"


def test_a_client_that_sums_twice_is_at_fault_itself(ranks: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., torch.Tensor] = client.RowwiseParallel.transform_output_post_forward

    def doubled(*given: object) -> torch.Tensor:
        return 2 * right(*given)

    monkeypatch.setattr(client.RowwiseParallel, "transform_output_post_forward", doubled)
    first = found(ranks, Case(twin(load("llama"), tp=2), plan_of("llama"), tp=2))[0]
    assert first.fault is Fault.CLIENT
    assert "a second application of the same plan" in first.why


class Raising(LlamaForCausalLM):
    """A model that cannot run anywhere."""

    def forward(self, input_ids: object = None, **_: object) -> NoReturn:
        raise RuntimeError("not written yet")


def test_a_model_that_raises_on_one_device_is_at_fault_itself() -> None:
    small = replace(twin(load("llama"), tp=2), model_class=Raising)
    (result,) = confirm_cases((Case(small, plan_of("llama"), tp=2),), engine="inprocess")
    assert [finding.fault for finding in result.findings] == [Fault.MODEL]


def test_a_parameter_that_is_frozen_has_no_gradient_to_get_wrong(ranks: InProcess) -> None:
    """The client's loading thaws it; the constructor's word counts, as it does to the proof."""
    plan = Plan(tp=(*(TpEntry(key, "colwise") for key in ("ask", "offer", "tell")), TpEntry("out", "rowwise")))
    for variant, codes in (("heat", ["DY502"]), ("frozen", [])):
        frozen = load("tests.zoo.planted_models:PlantedForCausalLM", overrides={"variant": variant})
        case = Case(twin(frozen, tp=2), plan, tp=2)
        assert [finding.code for finding in findings_of(case, ranks.check(case))] == codes


class Blind(LlamaForCausalLM):
    """A model that says that it takes images, and does not."""

    def forward(self, input_ids=None, pixel_values=None, **kwargs):  # type: ignore[no-untyped-def]  # as its base
        if pixel_values is not None:
            raise NotImplementedError("no images yet")
        return super().forward(input_ids=input_ids, **kwargs)


def test_a_run_without_the_images_that_a_model_takes_says_so(ranks: InProcess) -> None:
    small = twin(load("llama"), tp=2)
    seeing: Callable[..., PreTrainedConfig] = type(small.config)
    small = replace(small, config=seeing(**small.config.to_dict(), patch_size=4), model_class=Blind)
    case = Case(small, plan_of("llama"), tp=2)
    (warning,) = findings_of(case, ranks.check(case))
    assert (warning.code, warning.severity) == ("DY504", Severity.WARNING)
    assert "the forward with images was not compared" in warning.message
    assert "NotImplementedError: no images yet" in warning.message
