"""All questions of `plan verify --train`, in the order in which they are asked."""

from shardproof.verify.run.training.answers import Answered, TrainingAnswer
from shardproof.verify.run.training.asking import LostRanksError, TrainingQuestion, Tried, Way, answer
from shardproof.verify.run.training.bench import TrainingBench
from shardproof.verify.run.training.dropout import DROPOUT_ALIKE, DROPOUT_APART
from shardproof.verify.run.training.forms import CHECKPOINTING, COMPILE, MIXED_PRECISION, REENTRANT
from shardproof.verify.run.training.saving import RESUMING, SAVING, SAVING_ALONE
from shardproof.verify.run.training.steps import (
    ACCUMULATION,
    ADAMW,
    ADAMW_FOREACH,
    CLIPPING,
    TRAINING_STEP,
    ZEROING,
)

AFTER = ("a plain training step is wrong", "the ranks lost each other")
"""How the reasons begin why a question is not asked after one that failed."""

QUESTIONS: tuple[TrainingQuestion, ...] = (
    TRAINING_STEP,
    CLIPPING,
    ACCUMULATION,
    ZEROING,
    ADAMW,
    ADAMW_FOREACH,
    MIXED_PRECISION,
    DROPOUT_ALIKE,
    DROPOUT_APART,
    CHECKPOINTING,
    REENTRANT,
    COMPILE,
    SAVING,
    SAVING_ALONE,
    RESUMING,
)


def ask_training(bench: TrainingBench) -> tuple[TrainingAnswer, ...]:
    """Ask every question. A collective.

    Where a plain step is wrong or cannot be taken, the others are not asked. None is asked after one that the ranks did not leave
    together.
    """
    tried: dict[Way, Tried] = {}
    answers: list[TrainingAnswer] = []
    because = ""
    for question in QUESTIONS:
        if because:
            answers.append(TrainingAnswer(question.name, Answered.NOT_ASKED, note=because))
            continue
        try:
            answers.append(answer(question, bench, tried))
        except LostRanksError as error:
            failed = f"leaves ranks that wait for each other ({error})"
            answers.append(TrainingAnswer(question.name, Answered.WRONG, "", float("inf"), failed))
            because = f"{AFTER[1]} in an earlier question, {question.name}"
        if question is TRAINING_STEP and answers[0].answered is not Answered.RIGHT:
            because = AFTER[0] if answers[0].answered is Answered.WRONG else answers[0].note
    return tuple(answers)
