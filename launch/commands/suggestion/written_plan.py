"""Write a suggested plan into the model's classes, and read it back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shardproof.launch.output.console import Progress
from shardproof.launch.result import EXIT_CODES, CommandResult, MisuseError
from shardproof.verify.report.suggestion import Suggested

if TYPE_CHECKING:
    from shardproof.planner.loading.load import LoadedModel


def write_suggestion(
    loaded: "LoadedModel", suggested: Suggested, progress: Progress, *, allow_installed: bool
) -> CommandResult:
    """Write a plan into the model's classes if it is proved, and read it back in a fresh process."""
    from shardproof.launch.authoring.plan_attributes import write_plan
    from shardproof.launch.authoring.read_back import not_carried
    from shardproof.planner.tracing.programs import on_meta

    code = EXIT_CODES[suggested.report.verdict]
    if code:
        progress.note(f"nothing was written: the plan is {suggested.report.verdict}.")
        return CommandResult("", code)
    written = write_plan(loaded, on_meta(loaded), suggested.plan, allow_installed=allow_installed)
    if written.files:
        with progress.step("reading it back"), _undone_on_error(written.files):
            if why := not_carried(loaded, suggested.plan):
                raise MisuseError(f"nothing was changed, because with the plan written {why}")
    for sentence in written.notes:
        progress.note(sentence)
    return CommandResult(written.diff.rstrip("\n"), 0)


@contextmanager
def _undone_on_error(files: tuple[Path, ...]) -> Iterator[None]:
    """Restore the files where the block raises, also after Ctrl-C."""
    from shardproof.launch.authoring.source_files import undo

    try:
        yield
    except BaseException:
        undo(files)
        raise
