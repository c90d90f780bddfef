"""Which inputs does a forward accept? The forms of `planner.inputs.example` are tried, and mended by what the forward raises."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

from shardproof.planner.inputs.call_form import CallForm, call_of, first_form
from shardproof.planner.inputs.corrections.argument_edits import corrections
from shardproof.planner.inputs.corrections.failed_operator import Witness
from shardproof.planner.inputs.example import InputForm, Inputs, Sizes, forms, guesses_calls, inputs_of, token_inputs
from shardproof.planner.inputs.mended import ELEMENTS, REAL_ELEMENTS, REAL_POSITIONS, edits, takes_objects

MOST = 10
"""Mended forms that are tried for one model."""
OF_ONE = 8
"""Edits that are tried for one exception."""
CORRECTED, SEEDS = 24, 2
"""Calls that are tried from the forms that came furthest, and how many of those."""
CALLS = 90
"""Calls of a module that are tried where only its own forward says what it takes."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Accepted:
    """`form`: what the forward accepts; `refused`: what it raised on other arguments, where it came furthest."""

    form: InputForm
    refused: Exception | None = None


@dataclass(frozen=True, slots=True)
class _Failure:
    form: InputForm
    error: Exception
    reached: int


def search(
    model: nn.Module,
    run: Callable[[Inputs], Result],
    *,
    sizes: Sizes,
    failed: type[Exception],
    reached: Callable[[Exception], int],
    fill: Callable[[Inputs], Inputs] = dict,
    corrected: int = CORRECTED,
) -> tuple[Accepted, Result]:
    """The fullest form that a forward accepts, and what `run` gives on it.

    Args:
        model: its forward's signature and its config give the forms.
        run: runs the forward on inputs.
        sizes: of the batch.
        failed: the class of the exceptions by which `run` refuses inputs.
        reached: how far the forward came before an exception; what came furthest is mended first.
        fill: makes of the meta tensors of a form what `run` is given.
        corrected: how many calls are tried that are corrected by the operator that failed.

    Raises:
        Exception: of class `failed`, what the fullest form raised that the model does not refuse as a call; nothing is accepted.
        NoInputsError: there is no form to try.
    """
    if guesses_calls(model):
        return _explored(model, run, sizes=sizes, failed=failed)
    every = list(forms(model, sizes))
    tokens = token_inputs(model).keys()
    text = [form for form in every if inputs_of(model, form, sizes).keys() <= tokens]
    failures: list[_Failure] = []
    for group in ([form for form in every if form not in text], text):
        known = len(failures)
        for form in chain(group, _mendings(model, failures, known, sizes)):
            try:
                given = inputs_of(model, form, sizes)
            except RuntimeError:  # sizes that no tensor can have
                continue
            try:
                result = run(fill(given))
            except failed as error:
                failures.append(_Failure(form, error, reached(error)))
                continue
            fuller = [one for one in failures if not inputs_of(model, one.form, sizes).keys() <= given.keys()]
            refused = max(fuller, key=lambda one: one.reached, default=None)
            return Accepted(form, None if refused is None else refused.error), result
        found = _corrected(model, run, failures, sizes=sizes, failed=failed, fill=fill, most=corrected)
        if found is not None:
            return found
    if not failures:
        raise NoInputsError(model)
    raise max(failures, key=lambda one: one.reached).error


def _corrected(
    model: nn.Module,
    run: Callable[[Inputs], Result],
    failures: list[_Failure],
    *,
    sizes: Sizes,
    failed: type[Exception],
    fill: Callable[[Inputs], Inputs],
    most: int,
) -> tuple[Accepted, Result] | None:
    """A call that the model takes, from the forms that it refused and came furthest with, corrected by the operators that
    failed; None where there is none.
    """
    furthest = sorted(failures, key=lambda one: -one.reached)[:SEEDS]
    if not furthest:
        return None
    calls = (call_of(inputs_of(model, one.form, sizes), rows=sizes.rows, tokens=sizes.length) for one in furthest)
    waiting = [InputForm(0, call=call) for call in dict.fromkeys(calls)]
    found = _tried_calls(model, run, waiting, sizes=sizes, failed=failed, fill=fill, most=most)
    return found if isinstance(found, tuple) else None


@dataclass(slots=True)
class _Refused:
    """A call that a forward raised on, and what is still to be tried for it."""

    call: CallForm
    error: Exception
    reached: int
    corrections: Iterator[CallForm]


def _explored(
    model: nn.Module,
    run: Callable[[Inputs], Result],
    *,
    sizes: Sizes,
    failed: type[Exception],
    fill: Callable[[Inputs], Inputs] = dict,
) -> tuple[Accepted, Result]:
    """The first call that a forward of a module takes, from what its signature asks for, corrected by what it raises.

    `fill` makes of meta tensors what `run` is given.
    """
    first = [form for form in forms(model, sizes) if form.call is None]
    call = first_form(model)
    asked = InputForm(0, call=call)
    waiting: list[InputForm] = [*first, asked] if len(call.arguments) == 1 else [asked, *first]
    found = _tried_calls(model, run, waiting, sizes=sizes, failed=failed, fill=fill)
    if isinstance(found, Exception):
        raise found
    if found is None:
        raise NoInputsError(model)
    return found


def _tried_calls(
    model: nn.Module,
    run: Callable[[Inputs], Result],
    waiting: list[InputForm],
    *,
    sizes: Sizes,
    failed: type[Exception],
    fill: Callable[[Inputs], Inputs] = dict,
    most: int = CALLS,
) -> tuple[Accepted, Result] | Exception | None:
    """The first of some calls and their corrections that runs, at most so many; else what the one that came furthest raised;
    None where nothing could be tried.
    """
    refused: list[_Refused] = []
    real = not next(model.parameters()).is_meta
    tried: set[CallForm] = set()
    last: Exception | None = None
    for _ in range(most):
        form = waiting.pop(0) if waiting else _next(refused, tried)
        if form is None:
            break
        try:
            given = inputs_of(model, form, sizes)
        except (RuntimeError, KeyError):  # sizes that no tensor can have
            continue
        if any(isinstance(one, Tensor) and _too_large(one, real=real) for one in given.values()):
            continue
        given = fill(given)
        witness = Witness({_argument(form, name): value for name, value in given.items()})
        try:
            with witness:
                result = run(given)
        except failed as error:
            last = error
            if form.call is not None:
                refused.append(_refused(model, form.call, error, witness, sizes))
            continue
        return Accepted(form), result
    return max(refused, key=lambda one: one.reached).error if refused else last


def _too_large(value: Tensor, *, real: bool) -> bool:
    """Whether a call with this tensor would take too much memory; in a run, attention over its positions counts too."""
    positions = value.shape[1] if real and value.dim() in (2, 3) else 0
    return value.numel() > (REAL_ELEMENTS if real else ELEMENTS) or positions > REAL_POSITIONS


def _argument(form: InputForm, name: str) -> str:
    """The argument that a tensor of a call is, or is a row of."""
    known = dict(form.call.arguments) if form.call is not None else {}
    return name if name in known or form.call is None else name.rpartition(".")[0]


def _refused(model: nn.Module, call: CallForm, error: Exception, witness: Witness, sizes: Sizes) -> _Refused:
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    found = corrections(model, call, cause, witness, rows=sizes.rows, tokens=sizes.length)
    return _Refused(call, error, witness.count, found)


def _next(refused: list[_Refused], tried: set[CallForm]) -> InputForm | None:
    """The next correction of the call that came furthest; of equals, the first."""
    for one in sorted(refused, key=lambda one: -one.reached):
        for call in one.corrections:
            if call not in tried:
                tried.add(call)
                return InputForm(0, call=call)
    return None


def plain_form(model: nn.Module, sizes: Sizes, fill: Callable[[Inputs], Inputs] = dict) -> InputForm | None:
    """The call that a module takes as torch runs it, much sooner found than in traces; None where none runs.

    `fill` makes of meta tensors what a model on another device is given.
    """

    def run(given: Inputs) -> None:
        with torch.no_grad():
            model(**given)

    try:
        return _explored(model, run, sizes=sizes, failed=Exception, fill=fill)[0].form
    except Exception:  # the model's code, on anything
        return None


class NoInputsError(Exception):
    """A forward of which no argument can be made."""

    def __init__(self, model: nn.Module) -> None:
        objects = takes_objects(model)
        also = (
            f", and asks for {' and '.join(objects)}; give the class of a part whose forward takes tensors"
            if objects
            else ""
        )
        super().__init__(f"{type(model).__name__} takes neither tokens nor images, sounds or states{also}")


def _mendings(model: nn.Module, failures: list[_Failure], known: int, sizes: Sizes) -> Iterator[InputForm]:
    """Edited forms of the failures from `known` on, the furthest first; the caller appends the failures of what is given."""
    tried: set[InputForm] = {one.form for one in failures}
    expanded: set[InputForm] = set()
    count = 0
    while count < MOST:
        left = [one for one in failures[known:] if one.form not in expanded]
        if not left:
            return
        best = max(left, key=lambda one: (one.reached, -len(one.form.edits)))
        expanded.add(best.form)
        given = inputs_of(model, best.form, sizes)
        cause = best.error.__cause__ if isinstance(best.error.__cause__, Exception) else best.error
        for at, more in enumerate(edits(model, given, cause, sizes)):
            form = InputForm(best.form.attempt, (*best.form.edits, *more))
            if at == OF_ONE or count == MOST:
                break
            if form not in tried:
                tried.add(form)
                count += 1
                before = len(failures)
                yield form
                if failures[before:] and failures[-1].reached > best.reached:
                    break  # it came further: mend that first
