"""Ranks as threads of this process: quick, for cases of twins on the CPU."""

import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from shardproof.launch.ranks.runner import CaseResult
from shardproof.verify.run.inprocess import InProcess
from shardproof.verify.stages.case import Case


class ThreadRanks:
    """So many ranks; after a case that was not answered in time its threads are left behind, and new ones go on."""

    def __init__(self, ranks: int, timeout: float) -> None:
        self.ranks, self.timeout = ranks, timeout
        self._threads: InProcess | None = None

    def __enter__(self) -> "ThreadRanks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def run(self, cases: Sequence[Case]) -> Iterator[CaseResult]:
        """One result for each case, in order."""
        for case in cases:
            began = time.monotonic()
            if self._threads is None:
                self._threads = InProcess(self.ranks).__enter__()
            try:
                outcomes = self._threads.check(case, timeout=self.timeout)
            except TimeoutError:
                self._end()
                yield CaseResult({}, self.timeout, timed_out=True)
            else:
                yield CaseResult(outcomes, time.monotonic() - began)

    def _end(self) -> None:
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.__exit__(None, None, None)
