"""What is made of the answers to training questions, and how choices are taken again. No ranks."""

from typing import cast

import pytest
import torch
import torch.distributed as dist

from shardproof.planner.ir.findings import Severity
from shardproof.verify.run.training.answers import Answered, TrainingAnswer
from shardproof.verify.run.training.asking import LostRanksError, TrainingQuestion
from shardproof.verify.run.training.bench import AnotherRankError, TrainingBench, on_every_rank
from shardproof.verify.run.training.choices import Choices
from shardproof.verify.run.training.forms import _roundings
from shardproof.verify.run.training.questions import QUESTIONS, ask_training
from shardproof.verify.run.training.verdicts import answer_lines, training_findings


def test_what_was_not_asked_is_undecided_once_for_each_reason() -> None:
    reason = "one device draws random numbers in training, also without dropout"
    answers = [TrainingAnswer(name, Answered.NOT_ASKED, note=reason) for name in ("training step", "clipping", "AdamW")]
    (finding,) = training_findings(answers, {})
    assert (finding.code, finding.severity) == ("DY504", Severity.UNDECIDED)
    assert finding.message == f"training step was not compared: {reason}"


def test_what_the_model_does_not_have_is_no_finding() -> None:
    answer = TrainingAnswer("dropout, one seed", Answered.NOTHING, note="no call of functional dropout was seen")
    assert training_findings([answer], {}) == ()
    assert answer_lines([answer]) == {"dropout, one seed": "nothing to ask: no call of functional dropout was seen"}


def test_questions_after_ranks_that_lost_each_other_add_nothing() -> None:
    lost = TrainingAnswer("clipping", Answered.WRONG, "", float("inf"), "leaves ranks that wait for each other")
    after = TrainingAnswer(
        "AdamW", Answered.NOT_ASKED, note="the ranks lost each other in an earlier question, clipping"
    )
    (finding,) = training_findings([lost, after], {})
    assert (finding.code, finding.severity) == ("TR601", Severity.ERROR)


def test_choices_are_taken_again_where_rounding_would_change_them() -> None:
    exact = torch.tensor([[0.5, 0.5001, 0.1]], dtype=torch.float64)
    rounded = exact.bfloat16().float() + torch.tensor([[1e-4, 0.0, 0.0]])
    choices = Choices()
    with choices.kept():
        assert torch.topk(exact, 1).indices.item() == 1
    assert rounded.topk(1).indices.item() == 0
    rounded.requires_grad_()
    with choices.taken():
        values, indices = rounded.topk(1, dim=-1)
        assert rounded.topk(2).indices.tolist() == [[0, 1]]  # a call of which nothing is kept chooses by itself
    assert indices.item() == 1
    values.sum().backward()
    assert rounded.grad is not None and rounded.grad.tolist() == [[0.0, 1.0, 0.0]]


class _Case:
    tp = 2


class _Bench:
    case = _Case()


def test_a_rank_does_not_go_on_where_another_has_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = False

    def gather(every: list[object], mine: object) -> None:
        every[:] = [mine, theirs]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    bench = cast(TrainingBench, _Bench())
    with pytest.raises(AnotherRankError, match="another rank raises"):
        on_every_rank(bench, lambda: 7)
    with pytest.raises(ZeroDivisionError):
        on_every_rank(bench, lambda: 1 // 0)
    theirs = True
    assert on_every_rank(bench, lambda: 7) == 7


def test_what_was_answered_before_the_ranks_lost_each_other_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def answered(question: TrainingQuestion, *_: object) -> TrainingAnswer:
        if question is QUESTIONS[2]:
            raise LostRanksError("another rank does not come")
        return TrainingAnswer(question.name, Answered.RIGHT)

    monkeypatch.setattr("shardproof.verify.run.training.questions.answer", answered)
    answers = ask_training(cast(TrainingBench, _Bench()))
    assert [one.question for one in answers] == [one.name for one in QUESTIONS]
    assert [one.answered for one in answers[:4]] == [
        Answered.RIGHT,
        Answered.RIGHT,
        Answered.WRONG,
        Answered.NOT_ASKED,
    ]
    assert answers[-1].note == "the ranks lost each other in an earlier question, accumulation"


def test_the_rounding_of_a_few_numbers_is_chance_and_judged_over_layers() -> None:
    torch.manual_seed(0)
    scalars = {f"layers.{layer}.act.alpha": torch.ones(1) for layer in range(12)}
    truth = {**scalars, "norm.scale": torch.ones(1), "head.weight": torch.ones(64)}
    alone = {name: value + 0.02 * torch.randn_like(value) for name, value in truth.items()}
    alone["layers.3.act.alpha"] = torch.ones(1)  # by chance exact
    ranks = {name: value + 0.02 * torch.randn_like(value) for name, value in truth.items()}
    judged, compared = _roundings(truth, alone, ranks)
    assert judged.keys() == {"layers.0.act.alpha", "head.weight"}
    assert compared == 13
    assert max(judged.values()) < 4
    wrong = {name: value / 2 if "alpha" in name else value for name, value in ranks.items()}
    assert _roundings(truth, alone, wrong)[0]["layers.0.act.alpha"] > 4
