"""The pytest plugin `shardproof`: one line in a model's tests for each level. Torch loads only when a test asks.

def test_the_plan(shardproof):
    shardproof.proof("path/to/checkpoint", tp=2)
    shardproof.run("path/to/checkpoint", tp=2)
"""

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from shardproof.planner.ir.plan import Plan
    from shardproof.planner.loading.load import LoadedModel
    from shardproof.verify.report.report import LevelResult


class Checks:
    """The checks that a test can call. A check that does not hold fails the test with the report that the command prints.

    `model` is a loaded model or a reference as the command takes it; `overrides` are fields of its config; `plan` is by
    default the one that the model carries.
    """

    def proof(
        self,
        model: "LoadedModel | str",
        *,
        tp: int = 2,
        plan: "Plan | None" = None,
        overrides: Mapping[str, object] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Fail the test unless the plan is proved at `tp` ranks."""
        from shardproof.verify.proof.prove import prove

        with _one_block(model):
            loaded, plan = _given(model, plan, overrides, trust_remote_code)
            result = prove(loaded, plan, tp=tp)
        _held(loaded, result, f"tp {tp}", right="proved")

    def run(
        self,
        model: "LoadedModel | str",
        *,
        tp: int = 2,
        pp: int = 1,
        plan: "Plan | None" = None,
        overrides: Mapping[str, object] | None = None,
        trust_remote_code: bool = False,
        timeout: float = 300.0,
    ) -> None:
        """Fail the test unless `tp * pp` real ranks compute what one device computes; `timeout` is in seconds."""
        from shardproof.launch.ranks.confirm import confirm

        with _one_block(model):
            loaded, plan = _given(model, plan, overrides, trust_remote_code)
            result = confirm(loaded, plan, tp=tp, pp=pp, timeout=timeout)
        _held(loaded, result, f"tp {tp} x pp {pp}", right="confirmed")

    def written(
        self,
        model: "LoadedModel | str",
        *,
        overrides: Mapping[str, object] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Fail the test unless the model carries the suggested plan: `plan suggest --write` would change nothing."""
        from shardproof.launch.authoring.plan_attributes import changes
        from shardproof.planner.inference.suggest import suggest
        from shardproof.planner.loading.build import build

        with _one_block(model):
            loaded, _ = _given(model, None, overrides, trust_remote_code)
            found = changes(loaded, build(loaded), suggest(loaded).plan)
        if found:
            names = ", ".join(f"{change.class_name}.{name}" for change in found for name in change.attributes)
            pytest.fail(f"{loaded.title}: `plan suggest --write` would change {names}", pytrace=False)


@contextmanager
def _one_block(model: "LoadedModel | str") -> Iterator[None]:
    """An error of the model, the arguments or the machine fails the test with one sentence and what was asked for; a bug keeps
    its traceback.
    """
    from shardproof.launch.failures import failure_sentence

    found = None
    try:
        yield
    except Exception as error:
        if (found := failure_sentence(error)) is None:
            raise
    if found is not None:  # not while the error is handled: pytest would print it as well
        pytest.fail(_block(model if isinstance(model, str) else model.title, found[0]), pytrace=False)


def _block(asked: str, sentence: str) -> str:
    """The model, and why it could not be verified, in lines of at most 100 columns."""
    why = textwrap.fill(sentence, 90, break_long_words=False, break_on_hyphens=False)
    return f"{asked} could not be verified\n\n{textwrap.indent(why, '  ')}"


def _given(
    model: "LoadedModel | str", plan: "Plan | None", overrides: Mapping[str, object] | None, trusted: bool
) -> "tuple[LoadedModel, Plan]":
    from shardproof.planner.loading.build import build
    from shardproof.planner.loading.carried_plan import carried_plan
    from shardproof.planner.loading.load import load

    loaded = load(model, overrides=overrides, trust_remote_code=trusted) if isinstance(model, str) else model
    return loaded, carried_plan(loaded, build(loaded)) if plan is None else plan


def _held(loaded: "LoadedModel", result: "LevelResult", layout: str, *, right: str) -> None:
    if result.verdict == right:
        return
    from shardproof.verify.report.formats.text import report_text
    from shardproof.verify.report.report import Report

    pytest.fail(report_text(Report(loaded.title, (result,)), layout=layout), pytrace=False)


@pytest.fixture(scope="session")
def shardproof() -> Checks:
    """Checks of tensor- and pipeline-parallel plans."""
    return Checks()
