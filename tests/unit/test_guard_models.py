"""Guards of the proof that look at more than one program: experts, stages, loading, modes. See `tests.unit.test_guards`."""

# mypy: disable-error-code="no-any-return, no-untyped-call"

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.fuzz_models import DISPATCH, MODEL
from shardproof.planner.inputs.run_modes import RunMode, Script
from shardproof.planner.ir.findings import Finding, Severity
from shardproof.planner.ir.placement import R, Shard
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.propagation.assign import Assigned
from shardproof.planner.propagation.expert_dispatch import dispatch_fault
from shardproof.planner.tracing.programs import on_meta, subject_of
from shardproof.planner.tracing.trace import trace_script
from shardproof.planner.weights.conversions import misplaced
from shardproof.planner.weights.init_weights import UnloadableError, check_initial
from shardproof.planner.weights.shards import PartError, part_of
from shardproof.verify.proof.expert_trial import try_experts
from shardproof.verify.proof.experts import check_experts
from shardproof.verify.proof.pipeline import check_chunks, check_pp
from shardproof.verify.proof.plan_form import check_plan
from shardproof.verify.proof.prove import prove
from shardproof.verify.proof.stages import Programs
from shardproof.verify.stages.case import Case, Staging
from tests.mutants.injected_faults import FaultKind, InjectedFault, InjectedFaults
from tests.zoo.guard_models import Words

ZOO = "tests.zoo.guard_models:"
TENSOR = {"layers.*.feed.up": "colwise", "layers.*.feed.down": "rowwise"}
HEAD = {"head": [["last_hidden_state"], ["logits"]]}
STAGES = {"words": [["input_ids"], ["x"]], "layers": [["x"], ["x"]]}


def check_programs(case: Case) -> tuple[Finding, ...]:
    return Programs(case.loaded).check(case).findings


def model(name: str = MODEL, **parts: str) -> LoadedModel:
    return load(name if ":" in name else ZOO + name, overrides=parts)


def tensor(styles: dict[str, str]) -> Plan:
    return Plan.from_json({"base_model_tp_plan": styles})


def expect(found: tuple[Finding, ...], code: str, words: str) -> None:
    errors = [one for one in found if one.severity is not Severity.WARNING]
    assert [one for one in errors if one.code == code and words in one.message], found


@pytest.mark.parametrize(
    ("stages", "head", "parts", "code", "words"),
    [
        ({"wordz": [["input_ids"], ["x"]]} | STAGES, HEAD, {}, "PP301", "which is no module"),
        ({"words": STAGES["words"], "layers.0": STAGES["layers"]}, HEAD, {}, "PP304", "is one of the layers"),
        ({"layers": STAGES["layers"], "words": STAGES["words"]}, HEAD, {}, "PP302", "layers"),
        (STAGES, {"model.words": [["input_ids"], ["x"]]} | HEAD, {}, "PP304", "name the same module"),
        (STAGES, HEAD, {"frame": "shared norm"}, "PP304", "model.last"),
        ({"words": [["input_ids"], []], "layers": STAGES["layers"]}, HEAD, {}, "PP303", "outputs"),
        ({"words": STAGES["words"], "layers": [["mask"], ["x"]]}, HEAD, {}, "PP303", "does not list"),
        ({"words": STAGES["words"]}, HEAD, {}, "PP304", ""),
        (STAGES, HEAD, {"frame": "leaves a tensor"}, "PP303", "cannot be cut"),
    ],
)
def test_a_pipeline_plan_is_refused(
    stages: dict[str, object], head: dict[str, object], parts: dict[str, str], code: str, words: str
) -> None:
    built = on_meta(model(MODEL, **parts))
    plan = Plan.from_json({"base_model_pp_plan": stages, "pp_plan": head})
    expect(check_pp(built, subject_of(built).graph, plan), code, words)


def test_no_pipeline_plan_is_refused() -> None:
    built = on_meta(model())
    expect(check_pp(built, subject_of(built).graph, Plan()), "PL104", "")


def test_a_layer_that_stands_twice_is_refused() -> None:
    built = on_meta(model("TwiceForCausalLM"))
    plan = Plan.from_json({"base_model_pp_plan": STAGES, "pp_plan": HEAD})
    expect(check_pp(built, subject_of(built).graph, plan), "PP304", "one module")


def test_layers_that_are_left_out_are_refused() -> None:
    expect(check_chunks((range(1), range(2, 3)), 3), "PP304", "")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"frame": "leaves a number"}, "does not give model.layers.2 the x"),
        ({"frame": "leaves a tensor in training", "mixer": "heads"}, "in training, stage 1"),
        ({"frame": "leaves a tensor in decoding", "mixer": "heads"}, "in decoding, stage 1"),
        ({"steps": "counter"}, "stage 1"),
        ({"steps": "drawn for a part"}, "draws random numbers"),
    ],
)
def test_stages_are_refused(parts: dict[str, str], words: str) -> None:
    plan = Plan.from_json({"base_model_pp_plan": STAGES, "pp_plan": HEAD})
    found = check_programs(Case(model(MODEL, num_hidden_layers="3", **parts), plan, pp=2))
    assert [one for one in found if words in one.message], found


def test_a_layer_that_runs_another_program_on_its_stage_is_refused() -> None:
    plan = Plan.from_json({"base_model_pp_plan": STAGES, "pp_plan": HEAD})
    found = check_programs(Case(model(MODEL, steps="counter of repeats"), plan, pp=2))
    expect(found, "PP305", "stage 1 runs another program in model.layers.1")


def test_a_gradient_that_is_not_summed_over_stages_is_refused() -> None:
    plan = Plan.from_json({"base_model_pp_plan": STAGES, "pp_plan": HEAD})
    fault = InjectedFault(FaultKind.GRADIENT_NOT_SUMMED, "model.layers.0.feed.up.weight")
    case = Case(model(MODEL, shared="true"), plan, pp=2, staging=Staging(faults=InjectedFaults((fault,))))
    expect(check_programs(case), "PP305", "is not summed over stages 0 and 1")


def test_a_stage_that_reads_what_another_stage_keeps_is_refused() -> None:
    plan = Plan.from_json({"base_model_pp_plan": STAGES, "pp_plan": HEAD})
    expect(check_programs(Case(model("ReadingForCausalLM", steps="logged"), plan, pp=2)), "PP305", "stage 1 raises")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (InjectedFault(FaultKind.FROZEN), "takes no gradient for"),
        (InjectedFault(FaultKind.LOCAL_INDEX), "in the cache"),
        (InjectedFault(FaultKind.WRONG_PEER, stage=-1, layer=1, other=2), "receives what another stage needs"),
    ],
)
def test_a_runtime_that_builds_stages_wrongly_is_refused(fault: InjectedFault, words: str) -> None:
    plan = Plan.from_json({"base_model_pp_plan": STAGES, "pp_plan": HEAD})
    stages = 4 if fault.kind is FaultKind.WRONG_PEER else 2
    loaded = model(MODEL, num_hidden_layers="4", mixer="heads")
    case = Case(loaded, plan, pp=stages, staging=Staging(faults=InjectedFaults((fault,))))
    expect(check_programs(case), "PP305", words)


@pytest.mark.parametrize(
    ("entries", "degree", "kind", "code", "words"),
    [
        (DISPATCH, 2, "where", "", ""),
        ({key: style for key, style in DISPATCH.items() if style == "grouped_gemm"}, 2, "where", "TP214", "no tokens"),
        ({key: style for key, style in DISPATCH.items() if not key.endswith("up")}, 2, "where", "TP214", "stays whole"),
        (DISPATCH, 4, "where", "TP201", "6 experts"),
        (DISPATCH, 2, "stacked product", "TP214", "all experts at once"),
        (DISPATCH, 2, "square", "TP214", "not linear in the routing weights"),
        (DISPATCH, 2, "masked", "", ""),
    ],
)
def test_an_expert_plan_is_refused(entries: dict[str, str], degree: int, kind: str, code: str, words: str) -> None:
    subject = subject_of(on_meta(model(MODEL, experts=kind)))
    plan = Plan.from_json({"base_model_ep_plan": entries})
    found = check_experts(subject.graph, plan, subject.prefix, degree)
    if code:
        expect(found, code, words)
    else:
        assert found == ()


def test_experts_that_cannot_be_tried_are_not_proved() -> None:
    plan = Plan.from_json({"base_model_ep_plan": DISPATCH})
    loaded = model("UntracedForCausalLM", experts="where")
    expect(try_experts(loaded, plan, 2), "TP210", "could not be tried")


def test_experts_whose_small_copy_cannot_be_made_are_not_proved() -> None:
    plan = Plan.from_json({"base_model_ep_plan": DISPATCH})
    expect(try_experts(model("StatelessForCausalLM", experts="where"), plan, 2), "TP210", "RuntimeError: no state")


def test_experts_that_nothing_calls_are_not_proved() -> None:
    subject = subject_of(on_meta(model("IdleForCausalLM", experts="where")))
    entries = {key.replace("layers.*.feed.experts", "idle"): style for key, style in DISPATCH.items()}
    found = check_experts(subject.graph, Plan.from_json({"base_model_ep_plan": entries}), subject.prefix, 2)
    expect(found, "TP210", "was not called in the traced forward")


def test_loading_that_loses_weights_is_refused() -> None:
    expect(prove(model("LosingForCausalLM"), tensor(TENSOR), tp=2).findings, "TP221", "head.weight")


def test_a_parameter_in_a_dtype_of_its_own_is_loaded() -> None:
    assert "TP221" not in {one.code for one in prove(model("FloatForCausalLM"), tensor(TENSOR), tp=2).findings}


def test_rows_that_a_table_uses_twice_are_not_proved_where_it_is_split_by_rows() -> None:
    loaded = load(_Twice(), inputs={"ids": torch.zeros(2, 8, dtype=torch.long)})
    by_rows = prove(loaded, Plan.from_json({"base_model_tp_plan": {"words": "embedding_rowwise"}}))
    expect(by_rows.findings, "TP210", "words uses what it looks up more than once")
    assert not prove(loaded, Plan.from_json({"base_model_tp_plan": {"words": "embedding_colwise"}})).findings


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = Words(64, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return self.words(ids)


def test_loading_that_cannot_be_tried_is_an_assumption() -> None:
    scope = prove(model("UnloadableForCausalLM"), tensor(TENSOR), tp=2).scope
    assert scope is not None
    assert [one for one in scope.assumptions if "could not be tried" in one]


def test_a_forward_that_cannot_be_traced_is_not_proved() -> None:
    expect(prove(model("UntracedForCausalLM"), tensor(TENSOR), tp=2).findings, "TP210", "could not be traced")
    plan = Plan.from_json({"base_model_pp_plan": STAGES, "pp_plan": HEAD})
    expect(prove(model("UntracedForCausalLM"), plan, tp=1, pp=2).findings, "TP210", "could not be traced")


def test_training_that_cannot_be_traced_is_not_proved() -> None:
    expect(prove(model("UntrainedForCausalLM"), tensor(TENSOR), tp=2).findings, "TP210", "in training could not be")


def test_inputs_that_nobody_knows_are_not_proved() -> None:
    found = prove(model("PictureForCausalLM"), Plan.from_json({"tp_plan": {"up": "colwise_gather_output"}}), tp=2)
    expect(found.findings, "TP210", "takes neither tokens nor images")


def test_experts_without_a_plan_for_them_are_refused() -> None:
    expect(prove(model(MODEL, experts="where"), tensor({"words": "embedding_rowwise"}), ep=2).findings, "PL104", "")


def test_an_assumption_is_undecided_in_a_strict_proof() -> None:
    found = prove(model(MODEL, steps="number of input"), tensor(TENSOR), tp=2, strict=True).findings
    expect(found, "TP210", "the proof assumes")


@pytest.mark.parametrize(
    ("styles", "code"), [({}, "PL104"), ({"layers.*.feed.up": "colwize"}, "PL101"), ({"words.up": "colwise"}, "PL102")]
)
def test_a_plan_of_the_wrong_form_is_refused(styles: dict[str, str], code: str) -> None:
    expect(check_plan(on_meta(model()), tensor(styles), 2), code, "")


def test_a_plan_that_nobody_reads_is_refused() -> None:
    plan = Plan.from_json({"tp_plan": {"up": "colwise_gather_output"}})
    expect(check_plan(on_meta(model("UnreadForCausalLM")), plan, 2), "PL106", "post_init")


@pytest.mark.parametrize(("size", "placement", "rank"), [(1, Shard(0), 0), (3, Shard(0, 2), 0), (4, Shard(0), 2)])
def test_a_tensor_that_does_not_divide_is_refused(size: int, placement: Shard, rank: int) -> None:
    with pytest.raises(PartError):
        part_of(torch.empty(size), placement, rank=rank, degree=3 if size == 4 else 2)


class ExpertModule(nn.Module):
    """Stacked experts with an attribute, a call and a body of their own."""

    def __init__(self, count: int, body: Callable[["ExpertModule", Tensor, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.num_experts, self.body = count, body
        self.up, self.down = nn.Parameter(torch.empty(4, 12, 8)), nn.Parameter(torch.empty(4, 8, 12))

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        return self.body(self, x, ids, weights)


class Routed(nn.Module):
    """A router with experts, called as `call` says."""

    def __init__(self, experts: nn.Module, call: Callable[["Routed", Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.experts, self.call, self.router = experts, call, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.router(x).softmax(-1).topk(2, -1)
        return self.call(self, x, ids, weights)


def one_expert(me: ExpertModule, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    return F.linear(F.linear(x, me.up[0]), me.down[0]) * weights.sum(-1, keepdim=True)


def usual_call(me: Routed, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    return me.experts(x, ids, weights)


def stacked_apart() -> nn.Module:
    module = ExpertModule(4, one_expert)
    module.down = nn.Parameter(torch.empty(5, 8, 12))
    return module


@pytest.mark.parametrize(
    ("experts", "call", "words"),
    [
        (lambda: ExpertModule(4, one_expert), usual_call, None),
        (stacked_apart, usual_call, "not stacked by expert"),
        (lambda: ExpertModule(3, one_expert), usual_call, "no `num_experts` of 4"),
        (lambda: ExpertModule(4, one_expert), lambda me, x, ids, weights: me.router(x), "took no part"),
        (
            lambda: ExpertModule(4, lambda me, x, ids, weights: (one_expert(me, x, ids, weights), x)),
            lambda me, x, ids, weights: me.experts(x, ids, weights)[0],
            "not called with hidden states, expert ids and routing weights",
        ),
        (
            lambda: ExpertModule(4, lambda me, x, ids, weights: one_expert(me, x, weights, ids)),
            lambda me, x, ids, weights: me.experts(x, weights, ids),
            "not tokens, expert ids and one routing weight",
        ),
        (
            lambda: ExpertModule(4, one_expert),
            lambda me, x, ids, weights: me.experts(x, *weights.topk(2, -1)[::-1]),
            "the ids count 2 choices",
        ),
        (
            lambda: ExpertModule(4, lambda me, x, ids, weights: one_expert(me, x, ids, weights) * me.up.mean()),
            usual_call,
            "experts.up meets mean with all experts at once",
        ),
        (
            lambda: ExpertModule(4, lambda me, x, ids, weights: one_expert(me, x, ids, weights.sqrt())),
            usual_call,
            "not linear in the routing weights",
        ),
        (
            lambda: ExpertModule(4, lambda me, x, ids, weights: F.linear(F.linear(x, me.up[0]), me.down[0])),
            usual_call,
            "does not depend on the routing weights",
        ),
    ],
)
def test_experts_that_break_the_contract_are_refused(
    experts: Callable[[], nn.Module], call: Callable[[Routed, Tensor, Tensor, Tensor], Tensor], words: str | None
) -> None:
    with torch.device("meta"):
        routed = Routed(experts(), call)
    script = Script(RunMode.EVALUATION, ({"x": torch.empty(6, 8, device="meta")},))
    graph, _ = trace_script(routed, script)
    fault = dispatch_fault(graph, graph.module_of["experts"])
    assert fault is None if words is None else fault is not None and words in fault


def test_a_conversion_that_mixes_the_parts_is_refused() -> None:
    built = on_meta(load("hrm_text", overrides={"num_hidden_layers": "2"}))
    name = "model.L_module.layers.0.self_attn.q_proj.weight"
    assert [one.held for one in misplaced(built, Assigned({}, {name: (Shard(0), "q_proj")}), 2)] == [R]


def test_initial_weights_that_mix_distributed_and_plain_tensors_are_refused() -> None:
    built = on_meta(load("rwkv", overrides={"num_hidden_layers": "2"}))
    sharded = {"rwkv.blocks.0.attention.time_first": (Shard(0), "time_first")}
    with pytest.raises(UnloadableError, match="_init_weights combines"):
        check_initial(built, Assigned({}, sharded))
