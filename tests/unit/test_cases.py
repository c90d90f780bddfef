"""Several models in one command: globs, pyproject.toml, formats, baselines, `--changed`, `--output` and `--plan -`."""

import io
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import html5lib
import pytest

import shardproof.launch.commands.check as checking
import shardproof.launch.commands.verify as verifying
from shardproof.launch.cli import run
from shardproof.launch.commands.cases.baseline import baseline_text, read_baseline
from shardproof.launch.commands.cases.project import read_project
from shardproof.launch.commands.cases.references import changed_files, expanded, is_changed
from shardproof.launch.commands.cases.request import Level, RunLayout, VerifyRequest
from shardproof.launch.output.finding_lines import locator
from shardproof.launch.output.report_formats import Drawing
from shardproof.launch.result import MisuseError, worst
from shardproof.planner.ir.errors import LoadError
from shardproof.planner.ir.findings import Finding, Place, Severity, Source
from shardproof.verify.report.case_report import CaseReport
from shardproof.verify.report.formats.github import reports_github
from shardproof.verify.report.formats.junit import reports_junit
from shardproof.verify.report.report import LevelResult, Report

Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch

WRONG = Finding("TP203", Severity.ERROR, "12 of 24 parts", Place("layers.*.up", "m.up", Source("m.py", 3)))
OPEN = Finding("TP210", Severity.UNDECIDED, "no rule")
HINT = Finding("TP205", Severity.WARNING, "right, but")


def case(model: str, *found: Finding, code: int = 0) -> CaseReport:
    return CaseReport(model, "tp 2", code, Report(model, (LevelResult("proof", 0.5, found),)))


@pytest.fixture
def answers(monkeypatch: Patch, tmp_path: Path) -> dict[str, CaseReport | Exception]:
    """Puts given reports in place of the verification; models that have none are proved. The current folder is a new one."""
    known: dict[str, CaseReport | Exception] = {}
    seen: list[VerifyRequest] = []

    def verify_case(request: VerifyRequest, **_: object) -> tuple[CaseReport, Drawing | None]:
        seen.append(request)
        found = known.get(request.model.reference, case(request.model.reference))
        if isinstance(found, Exception):
            raise found
        return found, None

    monkeypatch.setattr(verifying, "verify_case", verify_case)
    monkeypatch.chdir(tmp_path)
    known["seen"] = seen  # type: ignore[assignment]
    return known


def seen(answers: Mapping[str, object]) -> list[VerifyRequest]:
    found = answers["seen"]
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize(("codes", "wanted"), [((), 0), ((0, 0), 0), ((0, 3), 3), ((3, 2, 0), 2), ((2, 3, 1, 0), 1)])
def test_the_worst_exit_code_wins(codes: tuple[int, ...], wanted: int) -> None:
    assert worst(codes) == wanted


def test_an_error_of_one_model_ends_no_other(answers: dict[str, CaseReport | Exception], capsys: Captured) -> None:
    answers |= {
        "gone": LoadError("gone: there is no such file"),
        "odd": RuntimeError("first\nsecond"),
        "wrong": case("wrong", WRONG, code=1),
    }
    assert run(["verify", "gone", "odd", "wrong", "right", "-q"]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[:5] == [
        "model  at    verdict    findings  seconds",
        "gone   tp 2  no report",
        "odd    tp 2  no report",
        "wrong  tp 2  refuted    1         0.5 s",
        "right  tp 2  proved     0         0.5 s",
    ]
    assert "gone at tp 2: gone: there is no such file\n" in out
    assert "odd at tp 2: this is a bug in shardproof: RuntimeError: first second." in out
    assert "TP203 wrong-local-value (error)\n  12 of 24 parts" in out
    assert out.endswith("4 in all: 2 no report, 1 refuted, 1 proved\n")
    assert run(["verify", "gone", "right", "-q"]) == 2
    assert run(["verify", "odd", "right", "-q"]) == 3


def test_json_holds_all_reports(answers: dict[str, CaseReport | Exception], capsys: Captured) -> None:
    answers |= {"gone": LoadError("gone: no"), "wrong": case("wrong", WRONG, code=1)}
    assert run(["verify", "wrong", "gone", "--format", "json", "-q"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["exit_code"] == 1
    assert [(one["model"], one["exit_code"], one["error"]) for one in found["reports"]] == [
        ("wrong", 1, None),
        ("gone", 2, "gone: no"),
    ]
    assert found["reports"][0]["findings"][0]["code"] == "TP203"
    assert found["reports"][0]["levels"]["proof"]["verdict"] == "refuted"


def test_one_page_shows_several_models(answers: dict[str, CaseReport | Exception], capsys: Captured) -> None:
    answers |= {"gone": LoadError("gone: <no>"), "wrong": case("wrong", WRONG, code=1)}
    assert run(["verify", "right", "wrong", "gone", "--format", "html", "-q"]) == 1
    page = capsys.readouterr().out
    errors = html5lib.HTMLParser()
    errors.parse(page)
    assert errors.errors == []
    named = re.findall(r'id="([^"]+)"', page)
    assert len(named) == len(set(named))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(named)
    assert "3 models" in page
    assert "12 of 24 parts" in page
    assert "gone: &lt;no&gt;" in page


def test_junit_has_a_test_case_for_each_level() -> None:
    hostile = Finding("TP203", Severity.ERROR, "a\x00\x1b]0;x\x07 </failure> ]]> \ud800 \ufffe")
    cases = [case("a", hostile), case("b", OPEN, HINT), case("c"), CaseReport("d", "tp 2", 2, error="no such file")]
    suite = ElementTree.fromstring(reports_junit(cases))[0]
    assert suite.attrib == {"name": "shardproof", "tests": "4", "failures": "1", "errors": "2"}
    assert [(one.get("classname"), one.get("name")) for one in suite] == [
        ("a", "proof at tp 2"),
        ("b", "proof at tp 2"),
        ("c", "proof at tp 2"),
        ("d", "tp 2"),
    ]
    assert [[part.tag for part in one] for one in suite] == [["failure"], ["error", "system-out"], [], ["error"]]
    failure = suite[0][0]
    assert failure.get("type") == "TP203"
    assert "\\u0000\\u001b]0;x\\u0007 </failure> ]]> \\ud800 \\ufffe" in (failure.text or "")


def test_annotations_are_one_line_each() -> None:
    hostile = Finding("TP203", Severity.ERROR, "50 % off\n::set-output name=x::y\r", Place("a,b:c"))
    told = reports_github([case("m", hostile, OPEN), CaseReport("d", "tp 2", 2, error="no\nfile")]).splitlines()
    assert len(told) == 3
    assert told[0].startswith("::error file=config.json,line=1,title=TP203 wrong-local-value::m, tp 2: TP203")
    assert "50 %25 off%0A" in told[0]
    assert told[1].startswith("::warning file=config.json,line=1,title=TP210")
    assert told[2] == "::error title=d::d, tp 2: no%0Afile"


def test_a_baseline_hides_old_findings_and_no_new_one(
    answers: dict[str, CaseReport | Exception], capsys: Captured
) -> None:
    answers["m"] = case("m", WRONG, WRONG, code=1)
    assert run(["verify", "m", "n", "--write-baseline", "known.json"]) == 0
    assert "known findings written to known.json: 2" in capsys.readouterr().err
    assert {request.levels for request in seen(answers)} == {(Level.PROOF, Level.RUN)}
    assert run(["verify", "m", "n", "--baseline", "known.json", "-q"]) == 0
    out = capsys.readouterr().out
    assert "m      tp 2  refuted  0 and 2 known" in out
    assert "known, by the baseline\n  TP203" in out
    # The same place with other numbers is known; another code, a third one and an undecided one are not.
    other = Finding("TP203", Severity.ERROR, "6 of 24 parts", WRONG.place)
    answers["m"] = case("m", other, OPEN, code=1)
    assert run(["verify", "m", "n", "--baseline", "known.json", "--format", "json"]) == 3
    told = capsys.readouterr()
    assert [one["known"] for one in json.loads(told.out)["reports"][0]["findings"]] == [True, False]
    assert "known findings that are gone: 1" in told.err
    answers["m"] = case("m", WRONG, WRONG, WRONG, code=1)
    assert run(["verify", "m", "n", "--baseline", "known.json", "-q", "--format", "sarif"]) == 1
    results = json.loads(capsys.readouterr().out)["runs"][0]["results"]
    assert [one["baselineState"] for one in results] == ["unchanged", "unchanged", "new"]
    assert run(["verify", "n", "m2", "--baseline", "known.json", "-q"]) == 0


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"baseline": 2, "findings": []}', '{"baseline": 1, "findings": [1]}', "x"]
)
def test_what_is_no_baseline(text: str, tmp_path: Path) -> None:
    (tmp_path / "known.json").write_text(text)
    with pytest.raises(MisuseError, match="--write-baseline"):
        read_baseline(tmp_path / "known.json")


def test_a_baseline_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "known.json").write_text(baseline_text([case("m", WRONG), CaseReport("d", "tp 2", 2, error="no")]))
    known = read_baseline(tmp_path / "known.json")
    assert known.applied(case("m", WRONG, code=1)).code == 0
    assert known.applied(case("other", WRONG, code=1)).code == 1
    assert known.applied(CaseReport("m", "tp 2", 2, error="no")).code == 2


PROJECT = """
[tool.shardproof]
models = ["a", "checkpoints/*"]
degrees = [2, {tp = 2, pp = 2}]
levels = ["proof", "run"]
clients = ["transformers", "vllm"]
plans = {a = "plan.json"}
trusted = ["checkpoints/mine"]
"""


def test_a_project_names_models_degrees_levels_clients_plans_and_trust(
    answers: dict[str, CaseReport | Exception], capsys: Captured, tmp_path: Path
) -> None:
    for name in ("mine", "other"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "config.json").write_text("{}")
    (tmp_path / "checkpoints" / "empty").mkdir()
    (tmp_path / "checkpoints" / "other" / "link").symlink_to(tmp_path / "checkpoints" / "mine")
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    assert run(["verify", "-q"]) == 0
    asked = seen(answers)
    assert len(asked) == 3 * 2 * 2
    assert {(one.model.reference, one.plan_file, one.model.trust_remote_code) for one in asked} == {
        ("a", Path("plan.json"), False),
        ("checkpoints/mine", None, True),
        ("checkpoints/other", None, False),
    }
    assert {(one.layout, one.client, one.levels) for one in asked} == {
        (layout, client, levels)
        for layout in (RunLayout(2), RunLayout(2, 2))
        for client, levels in ((None, (Level.PROOF, Level.RUN)), ("vllm", (Level.PROOF,)))
    }
    assert capsys.readouterr().out.endswith("12 in all: 12 proved\n")
    asked.clear()
    assert run(["verify", "-q", "--tp", "4", "--level", "proof", "--for", "tgi"]) == 0
    assert {(one.layout, one.client, one.levels) for one in asked} == {(RunLayout(4), "tgi", (Level.PROOF,))}


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (None, "there is no model to work on: give a MODEL, or name models under"),
        ("", "there is no model to work on"),
        ("[tool.shardproof]", "names no models"),
        ("[tool.shardproof]\nmodels = 'a'", "has models = a, and not a list of texts"),
        ("[tool.shardproof]\nmodel = ['a']", "has no key 'model'. Did you mean models?"),
        ("[tool.shardproof]\nmodels = ['a']\ndegrees = [0]", "has a degree 0"),
        ("[tool.shardproof]\nmodels = ['a']\ndegrees = [true]", "has a degree True"),
        ("[tool.shardproof]\nmodels = ['a']\ndegrees = [{dp = 2}]", "and not a number from 1 up"),
        ("[tool.shardproof]\nmodels = ['a']\ndegrees = 2", "and not a list such as"),
        ("[tool.shardproof]\nmodels = ['a']\nlevels = ['prof']", "the level 'prof'. Did you mean proof?"),
        ("[tool.shardproof]\nmodels = ['a']\nplans = {b = 'x'}", "a plan for 'b', which is none of its models"),
        ("[tool.shardproof]\nmodels = ['a']\nplans = 3", "and not a table from a model to a plan file"),
        ("[tool.shardproof]\nmodels = ['a']\ntrusted = ['/tmp']", "only folders of this project can be trusted"),
        ("[tool.shardproof]\nmodels = ['a']\ntrusted = ['../x']", "only folders of this project can be trusted"),
        ("[tool.shardproof", "is not valid TOML"),
        ("x = " + "[" * 100_000, "is not valid TOML"),
    ],
)
def test_a_wrong_table_is_one_sentence(
    table: str | None, sentence: str, tmp_path: Path, monkeypatch: Patch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    if table is not None:
        (tmp_path / "pyproject.toml").write_text(table)
    assert run(["verify", "-q"]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_no_table_of_a_folder_above_is_read(tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.shardproof]\nmodels = ['a']")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    with pytest.raises(MisuseError, match="no model to work on"):
        read_project()


def test_a_link_out_of_a_trusted_folder_is_not_trusted(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine" / "link").symlink_to(tmp_path / "theirs")
    (tmp_path / "pyproject.toml").write_text("[tool.shardproof]\nmodels = ['a']\ntrusted = ['mine']")
    project = read_project()
    assert project.trusts("mine")
    assert project.trusts("mine/inside")
    assert not project.trusts("mine/link")
    assert not project.trusts("theirs")


def test_globs(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("x")
    assert expanded(["*", "a", "llama"]) == ("a", "b", "llama")
    assert expanded(["*/config.json"]) == ("a/config.json", "b/config.json")
    with pytest.raises(MisuseError, match="fits no folder"):
        expanded(["R*"])


def git(*arguments: str, cwd: Path) -> None:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", *who, *arguments], cwd=cwd, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: Patch) -> Path:
    """A repository with two models, all of it committed, whose own configuration would run a program."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "pyproject.toml").write_text(
        "[tool.shardproof]\nmodels = ['a', 'b', 'llama']\nplans = {llama = 'p.json'}"
    )
    git("init", "-q", cwd=tmp_path)
    git("add", ".", cwd=tmp_path)
    git("commit", "-qm", "first", cwd=tmp_path)
    (tmp_path / "monitor").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "monitor").chmod(0o755)
    git("config", "core.fsmonitor", str(tmp_path / "monitor"), cwd=tmp_path)
    git("config", "diff.external", str(tmp_path / "monitor"), cwd=tmp_path)
    git("add", "monitor", cwd=tmp_path)
    git("commit", "-qm", "second", cwd=tmp_path)
    (tmp_path / "ran").unlink(missing_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_git_says_what_changed(repository: Path, answers: dict[str, CaseReport | Exception], capsys: Captured) -> None:
    assert run(["verify", "--changed", "-q"]) == 0
    assert capsys.readouterr().out == "no model's files changed\n"
    (repository / "a" / "config.json").write_text('{"x": 1}')
    (repository / "b" / "new.py").write_text("")
    assert changed_files(()) == {repository / "a" / "config.json", repository / "b" / "new.py"}
    assert run(["verify", "--changed", "-q"]) == 0
    assert [one.model.reference for one in seen(answers)] == ["a", "b"]
    seen(answers).clear()
    (repository / "pyproject.toml").write_text((repository / "pyproject.toml").read_text() + "\n")
    assert run(["verify", "--changed", "-q"]) == 0
    assert [one.model.reference for one in seen(answers)] == ["a", "b", "llama"]
    assert not (repository / "ran").exists()


@pytest.mark.parametrize(
    ("files", "wanted"),
    [(["b/config.json"], ["b"]), (["README.md"], []), (["p.json"], ["llama"]), (["a/x/y.py", "b/z"], ["a", "b"])],
)
def test_a_hook_gives_the_files(
    files: list[str], wanted: list[str], repository: Path, answers: dict[str, CaseReport | Exception]
) -> None:
    assert run(["verify", "--changed", *files, "-q"]) == 0
    assert [one.model.reference for one in seen(answers)] == wanted


def test_without_git_the_files_have_to_be_given(tmp_path: Path, monkeypatch: Patch, capsys: Captured) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "pyproject.toml").write_text("[tool.shardproof]\nmodels = ['a']")
    assert run(["verify", "--changed", "-q"]) == 2
    assert "--changed asks git, which failed" in capsys.readouterr().err


def test_the_files_that_a_class_may_import(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "model.py").write_text("")
    (tmp_path / "one.py").write_text("")
    inside, beside = frozenset({tmp_path / "pack" / "other.py"}), frozenset({tmp_path / "two.py"})
    assert is_changed("pack.model:Mine", None, inside)
    assert not is_changed("pack.model:Mine", None, beside)
    assert is_changed("one.py:Mine", None, beside)
    assert not is_changed("transformers.models.llama.modeling_llama:LlamaModel", None, inside | beside)
    assert not is_changed("llama", None, inside | beside)


def test_the_result_goes_into_a_file(
    answers: dict[str, CaseReport | Exception], capsys: Captured, tmp_path: Path
) -> None:
    assert run(["verify", "a", "b", "--output", "out.json", "--format", "json", "-q"]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["exit_code"] == 0
    assert capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert run(["verify", "a", "b", "--output", "gone/out.json", "-q"]) == 2
    assert "gone/out.json cannot be written" in capsys.readouterr().err
    if Path("/dev/full").exists():
        assert run(["verify", "a", "b", "--output", "/dev/full", "-q"]) == 3
        assert "/dev/full could not be written: No space left on device" in capsys.readouterr().err


class Stdin(io.TextIOWrapper):
    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"{", "-: this plan file is not valid JSON"), (b"\xff", "is not text in UTF-8"), (b"[]", "-: ")],
)
def test_a_plan_on_standard_input(
    content: bytes,
    sentence: str,
    answers: dict[str, CaseReport | Exception],
    monkeypatch: Patch,
    capsys: Captured,
) -> None:
    monkeypatch.setattr("sys.stdin", Stdin(b'{"base_model_tp_plan": {"up": "colwise"}}'))
    assert run(["verify", "a", "b", "--plan", "-", "-q"]) == 0
    assert [one.plan.tp[0].style for one in seen(answers) if one.plan] == ["colwise", "colwise"]
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", Stdin(content))
    assert run(["verify", "a", "--plan", "-", "-q"]) == 2
    assert sentence in capsys.readouterr().err


def test_a_check_of_several_models(monkeypatch: Patch, capsys: Captured, tmp_path: Path) -> None:
    asked: list[tuple[str, tuple[str, ...]]] = []

    def check_case(request: checking.CheckRequest, _: object) -> CaseReport:
        asked.append((request.model.reference, request.clients))
        return case(request.model.reference, WRONG, code=1)

    monkeypatch.setattr(checking, "check_case", check_case)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.shardproof]\nmodels = ['a', 'b']\nclients = ['vllm']")
    assert run(["check", "-q", "--format", "github"]) == 1
    assert capsys.readouterr().out.count("::error file=m.py,line=3") == 2
    assert asked == [("a", ("vllm",)), ("b", ("vllm",))]
    assert run(["check", "c", "-q", "--format", "junit", "--backend", "tgi"]) == 1
    assert ElementTree.fromstring(capsys.readouterr().out)[0].get("failures") == "1"
    assert asked[-1] == ("c", ("tgi",))
    assert run(["check", "a", "b", "-q", "--write-baseline", "known.json"]) == 0
    assert run(["check", "a", "-q", "--baseline", "known.json", "--backend", "tgi"]) == 0


def test_real_models_in_one_process(capsys: Captured, tmp_path: Path) -> None:
    small = ["--set", "num_hidden_layers=2", "--level", "proof", "-q"]
    (tmp_path / "plan.json").write_text('{"base_model_tp_plan": {"layers.*.self_attn.q_proj": "rowwise"}}')
    assert run(["verify", "llama", "nonsense-model", *small]) == 2
    assert "llama           tp 2  proved" in capsys.readouterr().out
    both = ["llama", "qwen2", "--plan", str(tmp_path / "plan.json"), "--format", "github"]
    assert run(["verify", *both, *small]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert {line.partition("::")[2].partition(" ")[0] for line in lines} == {"error"}
    assert all("file=plan.json,line=1," in line for line in lines)


def test_a_finding_without_anything_known_has_a_place() -> None:
    assert locator("no-such-model")(OPEN) == Source("config.json", 1)
