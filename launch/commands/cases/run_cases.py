"""Several models in one command: one process that imports torch once, a report each, and the worst exit code."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from shardproof.launch.commands.cases.baseline import Baseline, baseline_text, read_baseline
from shardproof.launch.commands.cases.project import FILE, Project, read_project
from shardproof.launch.commands.cases.references import changed_files, expanded, is_changed
from shardproof.launch.failures import bug, failure_sentence, interrupted
from shardproof.launch.output.console import Progress
from shardproof.launch.output.report_formats import Drawing, format_cases
from shardproof.launch.output.result_file import writable, write_result
from shardproof.launch.ranks.job import is_first_rank
from shardproof.launch.result import UNDECIDED, CommandResult, MisuseError, ReportFormat, worst
from shardproof.verify.report.case_report import CaseReport

Request = TypeVar("Request")


@dataclass(frozen=True, slots=True)
class KnownFindings:
    """The baseline that is applied, if there is one, and the file that one is written to."""

    baseline: Baseline | None = None
    written: Path | None = None

    @property
    def every_level(self) -> bool:
        """Whether each level has to run, since a level that is refuted already must not hide what the next one finds."""
        return self.baseline is not None or self.written is not None

    def applied(self, cases: Sequence[CaseReport], progress: Progress) -> tuple[CaseReport, ...]:
        """The cases with what is known of them; a baseline that is asked for is written, and nothing of it fails."""
        if self.written is not None:
            count = sum(len(case.findings) for case in cases)
            if is_first_rank():
                write_result(self.written, baseline_text(cases).rstrip("\n"))
            progress.note(f"known findings written to {self.written}: {count}.")
            return tuple(
                replace(case, code=0 if case.report else case.code, known=frozenset(range(len(case.findings))))
                for case in cases
            )
        if self.baseline is None:
            return tuple(cases)
        found = tuple(map(self.baseline.applied, cases))
        if gone := self.baseline.gone(cases):
            progress.note(f"known findings that are gone: {gone}; --write-baseline takes them out of the baseline.")
        return found


NOTHING_KNOWN = KnownFindings()


def known_findings(baseline: Path | None, written: Path | None) -> KnownFindings:
    """The options `--baseline` and `--write-baseline`.

    Raises:
        MisuseError: both are given, or a file is wrong.
    """
    if baseline is not None and written is not None:
        raise MisuseError("--baseline reads known findings and --write-baseline writes them; give one of them.")
    return KnownFindings(read_baseline(baseline) if baseline is not None else None, writable(written))


@dataclass(frozen=True, slots=True)
class NamedModels:
    """The models of a command line, and the project whose table names them; `listed` prints them as a list, also one alone."""

    models: tuple[str, ...]
    project: Project | None = None
    listed: bool = True

    def trusts(self, reference: str) -> bool:
        """Whether the project lets the code of this model run."""
        return self.project is not None and self.project.trusts(reference)


def named_models(
    given: Sequence[str] | None, *, changed: bool, plan_file: Path | None, known: Path | None
) -> NamedModels:
    """The models that were given, else those of the project; with `changed` those of the project whose files changed.

    Args:
        given: the arguments: models, or with `changed` the names of changed files.
        changed: whether models whose files did not change are left out.
        plan_file: the plan file of all models, if one is given.
        known: the baseline, if one is given: where it changed, every model is looked at.

    Raises:
        MisuseError: no model is named, or a glob fits none.
    """
    if given and not changed:
        models = expanded(given)
        return NamedModels(models, None, listed=len(models) > 1 or models != tuple(given))
    project = read_project()
    models = expanded(project.models)
    if changed:
        files = changed_files(given or ())
        all_of_them = any(file is not None and file.resolve() in files for file in (FILE, plan_file, known))
        models = tuple(model for model in models if all_of_them or is_changed(model, project.plans.get(model), files))
    return NamedModels(models, project)


def attempted(request: Request, work: Callable[[Request], CaseReport], *, model: str, asked: str) -> CaseReport:
    """The report of one of several models; an error is one sentence in place of the report, and the others go on."""
    try:
        return work(request)
    except Exception as error:
        if interrupted(error):
            raise
        sentence, code = failure_sentence(error) or (bug(error, " Verify this model alone with --debug."), UNDECIDED)
        return CaseReport(model, asked, code, error=sentence)


def result_of(
    cases: Sequence[CaseReport], form: ReportFormat, drawings: Sequence[Drawing | None] = ()
) -> CommandResult:
    """All reports in one text, and the worst exit code; `drawings` as `format_cases` takes them."""
    code = worst(case.code for case in cases)
    if not cases and form is ReportFormat.TEXT:
        return CommandResult("no model's files changed", 0)
    return CommandResult(format_cases(cases, form, code=code, drawings=drawings), code)
