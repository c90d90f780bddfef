"""`plan suggest` on a terminal: few lines, each thing once; and the Python with comments of three lengths."""

import math
from dataclasses import replace

import pytest

import shardproof.launch.commands.suggest as suggesting
from shardproof.launch.cli import run
from shardproof.launch.output.suggestion_text import columns, suggestion_text
from shardproof.planner.ir.degrees import Degrees, Limit, degrees_within
from shardproof.planner.ir.explanation import LeftWhole
from shardproof.planner.ir.findings import Place, Verdict
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.verify.report.client_readings import ClientVerdict, Everywhere
from shardproof.verify.report.formats.python import Comments, suggestion_python
from shardproof.verify.report.report import LevelResult, Report
from shardproof.verify.report.suggestion import Suggested

UP = TpEntry("layers.*.up", "colwise", "makes 8 parts: linear at models/m.py:12", "output splits into 8 parts")
SUGGESTED = Suggested(
    model="m",
    config_class="MConfig",
    model_class="MForCausalLM",
    plan=Plan(tp=(UP,), head_tp=(TpEntry("lm_head", "colwise_gather_output", "needed whole (models/m.py:30)"),)),
    degrees=degrees_within((Limit(8, even=True, what="8 parts of 128", place=Place("layers.*.up")),)),
    sharded_fraction=0.9,
    tp=2,
    report=Report("m", (LevelResult("proof", 1.0),), {}),
    notes=("a note",),
    left=(LeftWhole("norm", 8, 32, "mixes features", 0.001), LeftWhole("conv", 8, 320, "a convolution", 0.1)),
)
ONE, OTHER = (
    ClientVerdict("transformers 5.23", Verdict.PROVED),
    ClientVerdict("vllm 0.32", Verdict.REFUTED, ("TP203: x",)),
)


def test_llama_takes_at_most_40_lines_of_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setattr(suggesting, "_on_terminal", lambda: True)
    assert run(["suggest", "llama", "-q"]) == 0
    shown = capsys.readouterr().out
    assert sum(max(math.ceil(len(line) / 100), 1) for line in shown.splitlines()) <= 40
    assert shown.count("vllm 0.33") == 1
    assert shown.startswith("llama: proved at tp 2; 99.9 % of the parameter bytes sharded\n")
    assert "degrees  1, 2, 4, 8, 16, 32; 64 is forbidden by layers.*.self_attn.q_proj: 32 parts of 128\n" in shown
    assert ".py:" not in shown
    assert 'base_model_tp_plan = {\n    "embed_tokens": "embedding_rowwise",  # table' in shown


def test_each_thing_is_told_once() -> None:
    shown = suggestion_text(SUGGESTED, width=100, python=suggestion_python(SUGGESTED, head=False))
    assert shown.splitlines()[:4] == [
        "m: proved at tp 2; 90 % of the parameter bytes sharded",
        "  degrees  1, 2, 4, 8; 16 is forbidden by layers.*.up: 8 parts of 128",
        "  whole    conv (10 % of the bytes): a convolution",
        "  note     a note",
    ]
    assert "norm" not in shown
    assert shown.count("proved at tp") == shown.count("10 %") == 1


def test_why_tells_all_of_it() -> None:
    found = replace(SUGGESTED, everywhere=Everywhere((ONE, OTHER), 0.5))
    short, whole = (suggestion_text(found, width=100, why=why) for why in (False, True))
    assert "--why says what is lost there" in short
    assert "TP203: x" in whole
    assert "TP203: x" not in short
    assert "linear at models/m.py:12" in whole
    assert "models/m.py" not in short.replace("needed whole (models/m.py:30)", "")


def test_a_line_is_no_wider_than_the_terminal() -> None:
    long = replace(SUGGESTED, notes=("word " * 60,), plan=Plan(tp=(replace(UP, brief="reason " * 40),)))
    assert max(map(len, suggestion_text(long, width=80).splitlines())) <= 80
    assert columns(("a", "b"), (), 80) == ""


@pytest.mark.parametrize(
    ("legal", "told"),
    [
        ((1, 2, 4), "1, 2, 4; 8 is forbidden by the model: w"),
        ((1, 2, 3, 4, 6, 12), "1, 2, 4 and 3 more, such as 3; 8 is forbidden by the model: w"),
        ((1,), "1; 2 is forbidden by the model: w"),
        ((), "none; 1 is forbidden by the model: w"),
    ],
)
def test_degrees_as_powers_of_two(legal: tuple[int, ...], told: str) -> None:
    limit = Limit(None, even=True, what="w", place=Place())
    assert Degrees(legal, {d: limit for d in range(1, 20) if d not in legal}).powers() == told


def test_all_degrees_are_legal() -> None:
    assert Degrees((1, 2), {}).powers() == "1, 2"


@pytest.mark.parametrize(
    ("comments", "lines"),
    [
        (Comments.NONE, ['base_model_tp_plan = {"layers.*.up": "colwise"}']),
        (Comments.SHORT, ["base_model_tp_plan = {", '    "layers.*.up": "colwise",  # output splits into 8 parts']),
        (Comments.FULL, ['    "layers.*.up": "colwise",  # makes 8 parts: linear at models/m.py:12']),
    ],
)
def test_comments_of_three_lengths(comments: Comments, lines: list[str]) -> None:
    shown = suggestion_python(SUGGESTED, comments=comments)
    assert [line for line in lines if line not in shown.splitlines()] == []
    assert (".py:" in shown) == (comments is Comments.FULL)
    names: dict[str, object] = {}
    exec(shown, names)
    assert names["base_model_tp_plan"] == {"layers.*.up": "colwise"}
    assert names["_tp_plan"] == {"lm_head": "colwise_gather_output"}


@pytest.mark.parametrize(
    ("terminal", "given", "text"),
    [(True, [], True), (False, [], False), (True, ["--format", "python"], False), (False, ["--format", "text"], True)],
)
def test_a_terminal_gets_text_and_a_file_python(
    terminal: bool,
    given: list[str],
    text: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(suggesting, "_on_terminal", lambda: terminal)
    monkeypatch.setattr(suggesting, "read_model", lambda *_: None)
    monkeypatch.setattr(suggesting, "suggest_plan", lambda *_, **__: SUGGESTED)
    assert run(["suggest", "m", *given]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("m: proved") == text
    assert out.startswith("# Plan of m: proved at tp 2") != text
    assert err.startswith("m: proved") != text
