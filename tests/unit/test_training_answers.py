"""What is made of the answers to training questions, and how choices are taken again. No ranks."""

import torch

from shardproof.planner.ir.findings import Severity
from shardproof.verify.run.training.answers import Answered, TrainingAnswer
from shardproof.verify.run.training.choices import Choices
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
        "AdamW", Answered.NOT_ASKED, note="the ranks lost each other in the question before, clipping"
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
    values.sum().backward()  # type: ignore[no-untyped-call]  # torch's own method is untyped
    assert rounded.grad is not None and rounded.grad.tolist() == [[0.0, 1.0, 0.0]]
