"""All questions of `plan verify --train`, in the order in which they are asked."""

from shardproof.verify.run.training.answers import Answered, TrainingAnswer
from shardproof.verify.run.training.asking import TrainingQuestion, answer
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
    """Ask every question. A collective. Where a plain step is wrong or cannot be taken, the others are not asked."""
    first = answer(TRAINING_STEP, bench)
    if first.answered is not Answered.RIGHT:
        because = "a plain training step is wrong" if first.answered is Answered.WRONG else first.note
        rest = (TrainingAnswer(one.name, Answered.NOT_ASKED, note=because) for one in QUESTIONS[1:])
        return (first, *rest)
    return (first, *(answer(question, bench) for question in QUESTIONS[1:]))
