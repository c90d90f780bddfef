"""Which inputs does a forward accept? The forms of `planner.inputs.example` are tried, and mended by what the forward raises."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from torch import nn

from shardproof.planner.inputs.example import InputForm, Inputs, Sizes, forms, inputs_of, token_inputs
from shardproof.planner.inputs.mended import edits, takes_objects

MOST = 10
"""Mended forms that are tried for one model."""
OF_ONE = 8
"""Edits that are tried for one exception."""

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
) -> tuple[Accepted, Result]:
    """The fullest form that a forward accepts, and what `run` gives on it.

    Args:
        model: its forward's signature and its config give the forms.
        run: runs the forward on inputs.
        sizes: of the batch.
        failed: the class of the exceptions by which `run` refuses inputs.
        reached: how far the forward came before an exception; what came furthest is mended first.

    Raises:
        Exception: of class `failed`, what the fullest form raised that the model does not refuse as a call; nothing is accepted.
        NoInputsError: there is no form to try.
    """
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
                result = run(given)
            except failed as error:
                failures.append(_Failure(form, error, reached(error)))
                continue
            fuller = [one for one in failures if not inputs_of(model, one.form, sizes).keys() <= given.keys()]
            refused = max(fuller, key=lambda one: one.reached, default=None)
            return Accepted(form, None if refused is None else refused.error), result
    if not failures:
        raise NoInputsError(model)
    raise max(failures, key=lambda one: one.reached).error


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
