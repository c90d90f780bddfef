"""Names are data: no name of a module, class or folder becomes code, a command of the terminal, or another line."""

import ast
import io
import json
import unicodedata
from contextlib import redirect_stdout

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardproof.launch.output.console import print_result, say
from shardproof.launch.output.suggestion_text import suggestion_text
from shardproof.planner.ir.degrees import Degrees, Limit
from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.planner.ir.plan import Plan, PpEntry, TpEntry
from shardproof.planner.ir.readable_text import one_line, python_string, visible
from shardproof.verify.report.attributes import with_attributes
from shardproof.verify.report.formats.html import report_html
from shardproof.verify.report.formats.json import report_json, suggestion_json
from shardproof.verify.report.formats.python import suggestion_python
from shardproof.verify.report.formats.sarif import report_sarif
from shardproof.verify.report.formats.text import report_text
from shardproof.verify.report.report import LevelResult, Report
from shardproof.verify.report.suggestion import Suggested

HOSTILE = (
    'x": getattr(__import__("os"), "getpid")(), "y',
    "x\\",
    'a"""b',
    "a\nimport os",
    "a\r\x1b[2J\x07\x00b",
    "a\u202egnp.exe",
    "\ud800",
    "</script><script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "[bold]a[/bold]",
    "$(id)`id`;id",
)
names = st.sampled_from(HOSTILE) | st.text(min_size=1, max_size=12)


def suggested(name: str) -> Suggested:
    plan = Plan(
        tp=(TpEntry(f"layers.*.{name}", "colwise", name),),
        pp=(PpEntry(name, (name,), (name,)),),
        head_tp=(TpEntry(name, "colwise_gather_output"),),
    )
    return Suggested(
        name,
        name,
        name,
        plan,
        Degrees((1, 2), {3: Limit(3, True, name, Place(name, name))}),
        0.5,
        2,
        report(name),
        notes=(name,),
    )


def report(name: str) -> Report:
    found = Finding("TP203", Severity.ERROR, name, Place(name, name), name, name, name)
    return Report(name, (LevelResult("proof", 0.1, (found,)),), {"shardproof": name})


@given(names)
def test_a_literal_is_read_back(name: str) -> None:
    assert ast.literal_eval(python_string(name)) == name


@given(names)
def test_a_plan_as_python_holds_the_names_and_nothing_else(name: str) -> None:
    tree = ast.parse(suggestion_python(suggested(name)))
    found = {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body}  # type: ignore[attr-defined]
    assert found["base_model_tp_plan"] == {f"layers.*.{name}": "colwise"}
    assert found["base_model_pp_plan"] == {name: ([name], [name])}
    assert found["_tp_plan"] == {name: "colwise_gather_output"}


@given(names)
def test_a_plan_is_written_into_a_class_with_its_names(name: str) -> None:
    written = with_attributes(b"class Config:\n    pass\n", "Config", {"base_model_tp_plan": {name: "colwise"}})
    (owner,) = ast.parse(written).body
    assert isinstance(owner, ast.ClassDef)
    (entry,) = (node for node in owner.body if isinstance(node, ast.Assign))
    assert ast.literal_eval(entry.value) == {name: "colwise"}


def printed(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    print_result(report_text(report(name), layout="tp 2"))
    print_result(suggestion_python(suggested(name)))
    print_result(report_html(report(name), None, layout="tp 2", excerpt=lambda _: ()))
    say(name)
    print_result(suggestion_text(suggested(name), width=100, why=True))
    shown = capsys.readouterr()
    return shown.out + shown.err


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_that_steers_a_terminal_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(name, capsys)
    kinds = {unicodedata.category(one) for one in shown if one not in "\n\t"}
    assert not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert "<script>alert" not in shown.partition("<!doctype html>")[2].partition("</html>")[0]


@given(names)
def test_json_forms_are_json_after_they_are_made_visible(name: str) -> None:
    for text in (report_json(report(name)), report_sarif(report(name)), suggestion_json(suggested(name))):
        assert json.loads(visible(text)) == json.loads(text)


@given(names)
def test_one_line_is_one_line(name: str) -> None:
    assert len(one_line(name).splitlines()) <= 1


def test_what_is_printed_can_be_encoded() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with redirect_stdout(out):
        print_result("\ud800")
    assert out.buffer.getvalue() == b"\\ud800\n"
