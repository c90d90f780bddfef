"""From the answers to training questions to findings."""

from collections.abc import Iterable, Mapping, Sequence

from shardproof.planner.ir.findings import Fault, Finding, Place
from shardproof.verify.findings import dy504, training
from shardproof.verify.run.compare.localise import entry_of
from shardproof.verify.run.training.answers import Answered, TrainingAnswer
from shardproof.verify.run.training.questions import AFTER, QUESTIONS

_BY_MODEL = "one device raises"


def training_findings(answers: Iterable[TrainingAnswer], styles: Mapping[str, str]) -> tuple[Finding, ...]:
    """One finding for each question whose first way fails, or that was not asked; one for a reason that several share."""
    by_name = {question.name: question for question in QUESTIONS}
    found = []
    told: set[str] = set()  # the reason of the first question is that of the others
    for answer in answers:
        question = by_name[answer.question]
        module = answer.place.rpartition(".")[0]
        place = Place(entry_of(answer.place, dict(styles)) if answer.place else None, module or None)
        first = question.ways[0].label
        match answer.answered:
            case Answered.OTHERWISE:
                made = training.another_way(
                    question.code,
                    question.name,
                    answer.failed,
                    place,
                    first=first,
                    instead=answer.way,
                    fault=question.fault,
                )
            case Answered.WRONG:
                made = training.no_way(
                    question.code,
                    question.name,
                    answer.failed,
                    place,
                    first=first,
                    tried=len(question.ways),
                    fault=Fault.PLAN if question is QUESTIONS[0] else question.fault,
                )
            case Answered.NOT_ASKED if answer.note in told or answer.note.startswith(AFTER):
                continue
            case Answered.NOT_ASKED if answer.note.startswith(_BY_MODEL):
                made = dy504.not_compared(question.name, answer.note.removeprefix(f"{_BY_MODEL} "))
            case Answered.NOT_ASKED:
                made = dy504.not_asked(question.name, answer.note)
            case _:
                continue
        told.add(answer.note)
        found.append(made)
    return tuple(found)


def answer_lines(answers: Sequence[TrainingAnswer]) -> dict[str, str]:
    """Each question with its answer in a few words."""
    return {answer.question: _words(answer) for answer in answers}


def _words(answer: TrainingAnswer) -> str:
    note = f" ({answer.note})" if answer.note else ""
    match answer.answered:
        case Answered.RIGHT:
            return f"right{note}"
        case Answered.OTHERWISE:
            return f"{answer.failed}; right with {answer.way}{note}"
        case Answered.WRONG:
            return answer.failed
        case Answered.NOT_ASKED | Answered.NOTHING:
            return f"{answer.answered.value}: {answer.note}"
