"""The check with ranks as threads of this process: fast, for many plans of one model."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from transformers.utils import logging

from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.loading.quiet import quiet
from shardproof.verify.run.collectives.threads import Threads
from shardproof.verify.run.outcome import Outcome, failure_of
from shardproof.verify.run.worker import SharedBaseline, TwinBaseline, check, twin_baseline
from shardproof.verify.stages.case import Case

_CPU = torch.device("cpu")


class InProcess(AbstractContextManager["InProcess"]):
    """`degree` ranks in this process, on its CPU; cases of twins only.

    Transformers applies the plan as it does on real ranks. Not covered is what needs separate processes: a rank that dies,
    errors of the collective library, a run that never ends.
    """

    def __init__(self, degree: int) -> None:
        self._threads = Threads(degree)
        self._around = ExitStack()
        self._known: tuple[LoadedModel, int, TwinBaseline] | None = None

    def __enter__(self) -> "InProcess":
        for context in (quiet(), _no_progress_bars(), self._threads):
            self._around.enter_context(context)
        return self

    def __exit__(self, *_: object) -> None:
        self._around.close()

    def check(self, case: Case, *, hasty: bool = False, timeout: float = 300.0) -> dict[int, Outcome]:
        """The outcome of a case on every rank. The single-device model of a twin is built and asked once for all its cases.

        Args:
            case: of this degree.
            hasty: end with the first answer that is wrong.
            timeout: in seconds; after it these ranks cannot be used any more.

        Raises:
            ValueError: not a case of this kind.
            TimeoutError: not every rank answered in time.
        """
        if case.weights or case.tp * case.pp != self._threads.degree:
            raise ValueError(f"{self._threads.degree} ranks in one process check plans of a twin for that many ranks.")
        try:
            before = SharedBaseline() if case.pp > 1 else self._before(case)
        except Exception as error:  # the model raises on one device: every rank would say the same
            failure = failure_of(error, stage="the single-device model", module="", sharded=False)
            return {rank: Outcome(rank, failure=failure) for rank in range(case.tp)}
        answers = self._threads.run(
            lambda rank: check(case, rank=rank, device=_CPU, before=before, hasty=hasty), timeout=timeout
        )
        return dict(enumerate(answers))

    def silent(self, case: Case) -> frozenset[str]:
        """Parameters whose gradient is zero on one device: a run cannot see whether theirs is wrong."""
        gradients = self._before(case).want.gradients.get("gradient", {})
        return frozenset(name for name, gradient in gradients.items() if not gradient.any())

    def _before(self, case: Case) -> TwinBaseline:
        if self._known is None or self._known[:2] != (case.loaded, case.seed):
            self._known = (case.loaded, case.seed, twin_baseline(case, device=_CPU))
        return self._known[2]


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
