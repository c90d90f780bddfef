"""Ranks as threads say what real ranks say: the same verdict, the same findings, the same errors."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from transformers.models.xlm import modeling_xlm

from shardproof.launch.ranks.confirm import confirm_cases
from shardproof.planner.inference.suggest import suggest
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.ir.plan import Edit, Plan, TpEntry, join
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix, carried_plan
from shardproof.planner.loading.load import load
from shardproof.planner.twins.twin import twin
from shardproof.verify.report.report import LevelResult
from shardproof.verify.run.collectives.thread_scheduler import GoneError
from shardproof.verify.run.collectives.threads import Threads
from shardproof.verify.run.compare.outputs import perturbed
from shardproof.verify.run.compare.tensors import LIMIT
from shardproof.verify.stages.case import Case, Schedule, Staging
from tests.mutants.injected_faults import InjectedFaults


def _cases(name: str, edits: list[tuple[str, str | None, str | None]], *, tp: int = 2) -> list[Case]:
    """The suggested plan of a model, and one plan per edit of it."""
    loaded = load(name)
    plan = suggest(loaded).plan
    prefix = base_prefix(build(loaded))
    small = twin(loaded, tp=tp)
    plans: list[Plan] = [plan, *(plan.edited(Edit(join(prefix, key), old, new), prefix) for key, old, new in edits)]
    return [Case(small, each, tp) for each in plans]


EDITS: list[tuple[str, str | None, str | None]] = [
    ("layers.*.self_attn.o_proj", "rowwise", None),  # cannot run: the shapes do not fit
    ("layers.*.mlp.gate_proj", "colwise", "colwise_gather_output"),  # cannot run either
    ("layers.*.mlp.down_proj", "rowwise", "packed_rowwise"),  # a wrong forward
    ("layers.*.input_layernorm", None, "replicated_with_grad_allreduce"),  # wrong gradients only
    ("layers.*.mlp", None, "all_reduce"),  # a right result, summed twice
]


def _shown(result: LevelResult) -> tuple[Verdict, list[str], list[str | None]]:
    findings = result.findings
    return result.verdict, [finding.code for finding in findings], [finding.place.entry for finding in findings]


def compare_engines(cases: tuple[Case, ...], verdicts: list[Verdict]) -> None:
    threads = confirm_cases(cases, engine="inprocess")
    real = confirm_cases(cases)
    assert [_shown(result) for result in threads] == [_shown(result) for result in real]
    assert [result.verdict for result in real[: len(verdicts)]] == verdicts
    for mine, theirs in zip(threads, real, strict=True):
        assert mine.measures.keys() == theirs.measures.keys()
        for what, error in theirs.measures.items():
            assert mine.measures[what] == pytest.approx(error, rel=1e-6, abs=LIMIT), what


def test_transposed_weights_are_split_as_tables_are() -> None:
    (result,) = confirm_cases(tuple(_cases("gpt2", [])), engine="inprocess")
    assert result.verdict is Verdict.CONFIRMED, result.findings


def test_a_model_without_tokens_is_compared_by_what_it_makes_of_images() -> None:
    right, wrong = confirm_cases(
        tuple(_cases("vit", [("layernorm", None, "replicated_with_grad_allreduce")])), engine="inprocess"
    )
    assert right.verdict is Verdict.CONFIRMED, right.findings
    assert wrong.verdict is Verdict.REFUTED


def test_a_module_that_all_models_share_is_each_rank_s_own() -> None:
    """XLM makes one activation for all models of a process; ranks would hook and put back what is another's."""
    (result,) = confirm_cases(tuple(_cases("xlm", [])), engine="inprocess")
    assert result.verdict is Verdict.CONFIRMED, result.findings
    assert not vars(modeling_xlm)["gelu"]._forward_pre_hooks


class _Cancelling(nn.Module):
    """A small difference of large sums, which ranks add up in another order than one device."""

    def __init__(self, width: int = 16, hidden: int = 64) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.up(x))
        made: torch.Tensor = self.down(h + 1e8) - self.down(torch.zeros_like(h) + 1e8)
        return made


def test_what_the_model_s_own_rounding_explains_is_right() -> None:
    loaded = load(_Cancelling(), inputs={"x": torch.zeros(2, 3, 16)})
    plan = Plan.from_json({"base_model_tp_plan": {"up": "colwise", "down": "rowwise"}})
    (result,) = confirm_cases((Case(loaded, plan, 2),), engine="inprocess")
    assert result.verdict is Verdict.CONFIRMED, result.findings
    assert max(result.measures.values()) > LIMIT


def test_a_weight_in_float64_moves_by_one_rounding() -> None:
    model = _Cancelling().double()
    moved = perturbed(model, seed=0)["up.weight"] / model.up.weight.detach() - 1
    assert bool((moved.abs() > 0).all())
    assert float(moved.abs().max()) <= 2 * torch.finfo(moved.dtype).eps


def test_threads_agree_with_real_ranks() -> None:
    cases = (*_cases("llama", EDITS), *_cases("qwen2_moe", [("layers.*.mlp.experts", "moe_tp_experts", None)]))
    compare_engines(cases, [Verdict.CONFIRMED, Verdict.REFUTED])


def test_threads_agree_with_real_ranks_on_stages() -> None:
    """Two microbatches on two and on four stages, a wrong order, a layer on two stages."""
    loaded = load("gemma2")
    plan = carried_plan(loaded, build(loaded))
    turned = replace(plan, pp=(plan.pp[0], plan.pp[2], plan.pp[1]))
    two, four = twin(loaded, tp=1, pp=2), twin(loaded, tp=1, pp=4)
    cases = (
        Case(two, plan, 1, 2, staging=Staging(Schedule.ONE_F_ONE_B)),
        Case(four, plan, 1, 2, staging=Staging(Schedule.INTERLEAVED, rounds=2)),
        Case(two, turned, 1, 2),
        Case(two, plan, 1, 2, staging=Staging(faults=InjectedFaults(overlap=1))),
    )
    compare_engines(cases, [Verdict.CONFIRMED, Verdict.CONFIRMED, Verdict.REFUTED, Verdict.REFUTED])


def test_a_rank_that_is_gone_is_not_waited_for() -> None:
    def work(rank: int) -> str:
        try:
            if rank == 1:
                raise KeyError("gone")
            dist.all_reduce(torch.ones(1))
        except (KeyError, GoneError) as error:
            return type(error).__name__
        return "reduced"

    with Threads(3) as threads:
        assert threads.run(work) == ["GoneError", "KeyError", "GoneError"]
        assert threads.run(lambda rank: rank) == [0, 1, 2]


def test_different_collectives_are_an_error_on_every_rank() -> None:
    def work(rank: int) -> str:
        try:
            if rank:
                dist.all_reduce(torch.ones(2))
            else:
                dist.broadcast(torch.ones(2), src=0)
        except RuntimeError as error:
            return str(error)
        return "agreed"

    with Threads(2) as threads:
        answers = threads.run(work)
    assert all("different collectives" in answer for answer in answers), answers


def test_work_that_never_ends_is_left_behind() -> None:
    def work(rank: int) -> None:
        while rank == 0:
            dist.all_reduce(torch.ones(1))
        dist.barrier()
        while True:
            dist.all_reduce(torch.ones(1))

    with Threads(2) as threads, pytest.raises(TimeoutError, match="not every rank ended"):
        threads.run(work, timeout=0.5)


def test_a_transposed_shard_raises_where_it_is_trained() -> None:
    plan = Plan(tp=(TpEntry("up", "colwise"), TpEntry("down", "rowwise")))
    model = "tests.zoo.borrowing_model:TurnedForCausalLM"
    loaded = [load(model, overrides={"written_out": written_out}) for written_out in ("true", "false")]
    right, wrong = confirm_cases(tuple(Case(twin(one, tp=2), plan, 2) for one in loaded), engine="inprocess")
    assert right.verdict is Verdict.CONFIRMED, right.findings
    assert [(finding.code, finding.place.entry) for finding in wrong.findings] == [("DY504", "down")]


def test_code_is_told_the_size_of_the_whole_weight() -> None:
    plan = Plan(tp=(TpEntry("up", "colwise"), TpEntry("down", "rowwise")))
    model, ways = "tests.zoo.borrowing_model:AskingForCausalLM", ("view", "shape", "size", "length", "number")
    loaded = [load(model, overrides={"asked": asked}) for asked in ways]
    view, *numbers = confirm_cases(tuple(Case(twin(one, tp=2), plan, 2) for one in loaded), engine="inprocess")
    assert view.verdict is Verdict.REFUTED
    assert [one.verdict for one in numbers] == [Verdict.CONFIRMED] * 4, [one.findings for one in numbers]
