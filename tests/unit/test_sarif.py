"""SARIF as GitHub takes it: every result has a place in the checkout, and no count is over GitHub's limits.

Requirements and limits are those of docs.github.com, "SARIF support for code scanning" and "SARIF results exceed limits" (2025).
"""

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import jsonschema
import pytest

from shardproof.launch.cli import run
from shardproof.launch.output.finding_lines import locator, repository
from shardproof.planner.ir.findings import Finding, Place, Severity, Source
from shardproof.planner.loading.load import load
from shardproof.verify.report.case_report import CaseReport
from shardproof.verify.report.formats.sarif import MOST_RESULTS, report_sarif, reports_sarif
from shardproof.verify.report.report import LevelResult, Report
from tests.unit.test_reports import schema

MOST = {"runs": 20, "results": 25_000, "rules": 25_000, "locations": 1_000, "tags": 20}
TEXT = 1024
"""Characters of a rule's description."""

MODEL = """from transformers import LlamaConfig, LlamaForCausalLM


class MineConfig(LlamaConfig):
    model_type = "mine"
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "rowwise",
        "layers.*.mlp.up_proj": "packed_colwise",
    }


class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""
PLAN = """{
  "base_model_tp_plan": {
    "layers.*.mlp.down_proj": "rowwise",
    "layers.*.self_attn.q_proj": "rowwise"
  }
}
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a model in a folder whose name has to be quoted in an address."""
    (tmp_path / ".git").mkdir()
    folder = tmp_path / "my models"
    folder.mkdir()
    (folder / "mine.py").write_text(MODEL)
    (folder / "plan.json").write_text(PLAN)
    monkeypatch.chdir(folder)
    return tmp_path


def accepted(text: str, checkout: Path | None) -> list[dict[str, Any]]:
    """The results, after every requirement was checked; paths are looked up in the checkout, if there is one."""
    made = json.loads(text)
    jsonschema.validate(made, schema())
    assert made["version"] == "2.1.0"
    assert 1 <= len(made["runs"]) <= MOST["runs"]
    (ran,) = made["runs"]
    driver, results = ran["tool"]["driver"], ran["results"]
    assert driver["name"]
    assert len(driver["rules"]) <= MOST["rules"]
    assert len(results) <= MOST["results"]
    for rule in driver["rules"]:
        assert len(rule.get("name", "")) <= 255
        assert all(len(rule[key]["text"]) <= TEXT for key in ("shortDescription", "fullDescription") if key in rule)
        assert len(rule.get("properties", {}).get("tags", [])) <= MOST["tags"]
    for result in results:
        assert result["message"]["text"].strip()
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        assert result["partialFingerprints"]["primaryLocationLineHash"]
        assert 1 <= len(result["locations"]) <= MOST["locations"]
        for location in [*result["locations"], *result.get("relatedLocations", [])]:
            physical = location["physicalLocation"]
            address = urlsplit(physical["artifactLocation"]["uri"])
            assert (address.scheme, address.netloc, address.query, address.fragment) == ("", "", "", "")
            assert address.path
            assert not address.path.startswith("/")
            assert ".." not in address.path.split("/")
            assert physical["region"]["startLine"] >= 1
        if checkout is not None:
            first = result["locations"][0]["physicalLocation"]
            file = checkout / unquote(first["artifactLocation"]["uri"])
            assert first["region"]["startLine"] <= len(file.read_text().splitlines())
    return list(results)


def place(result: dict[str, Any]) -> tuple[str, int]:
    physical = result["locations"][0]["physicalLocation"]
    return physical["artifactLocation"]["uri"], physical["region"]["startLine"]


SMALL = ["--set", "num_hidden_layers=2", "--set", "hidden_size=64", "--set", "vocab_size=64", "--level", "proof", "-q"]


def test_an_entry_is_shown_in_the_file_that_holds_the_plan(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--set", "num_attention_heads=4", "--set", "num_key_value_heads=4", *SMALL, "--format", "sarif"]
    assert run(["verify", "mine.py:MineForCausalLM", *small]) == 1
    found = accepted(capsys.readouterr().out, checkout)
    lines = {"layers.*.self_attn.q_proj": 7, "layers.*.mlp.up_proj": 8}
    assert found
    for result in found:
        entry = result["locations"][0]["logicalLocations"][-1]["fullyQualifiedName"]
        assert place(result) == ("my%20models/mine.py", lines[entry])
    assert run(["verify", "mine.py:MineForCausalLM", "--plan", "plan.json", *small]) == 1
    found = accepted(capsys.readouterr().out, checkout)
    assert {place(result) for result in found} == {("my%20models/plan.json", 4)}
    assert any(one["relatedLocations"][0]["message"]["text"] for one in found if "relatedLocations" in one)


def finding(entry: str | None = None, source: Source | None = None, severity: Severity = Severity.ERROR) -> Finding:
    return Finding("TP203", severity, "wrong", Place(entry, "m", source))


def test_a_finding_without_an_entry_is_shown_in_the_models_file(checkout: Path) -> None:
    reference = "mine.py:MineForCausalLM"
    locate = locator(reference, load(reference))
    assert locate(finding(source=Source("mine.py", 9))) == Source("my models/mine.py", 9)
    assert locate(finding(source=Source("transformers/models/llama/modeling_llama.py", 9))).file == "my models/mine.py"
    assert locate(finding()) == Source("my models/mine.py", 12)
    assert locate(finding(entry="nowhere")) == Source("my models/mine.py", 12)


def test_a_checkpoint_is_shown_by_its_config(checkout: Path) -> None:
    folder = checkout / "my models"
    fields = {"model_type": "llama", "num_hidden_layers": 2, "base_model_tp_plan": {"layers.*.x": "colwise"}}
    (folder / "config.json").write_text(json.dumps(fields, indent=1))
    for reference in (".", "./config.json", str(folder)):
        locate = locator(reference, load(reference))
        assert locate(finding(entry="model.layers.*.x")) == Source("my models/config.json", 5)
        assert locate(finding()) == Source("my models/config.json", 1)
    assert locator(str(folder))(finding()) == Source("my models/config.json", 1)


def test_a_model_type_is_shown_in_its_package() -> None:
    locate = locator("llama", load("llama"))
    assert locate(finding(entry="layers.*.mlp.up_proj")).file == "transformers/models/llama/configuration_llama.py"
    assert locate(finding()).file == "transformers/models/llama/modeling_llama.py"


def test_outside_a_repository_the_current_folder_is_its_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert repository() == tmp_path.resolve()


@pytest.mark.parametrize("file", ["/home/alice/m.py", "../m.py", "a b#c?.py", "C:\\x.py", ""])
def test_an_address_is_relative_whatever_a_file_is_called(file: str) -> None:
    report = Report("m", (LevelResult("proof", 0.1, (finding(source=Source(file, 0)),)),))
    (result,) = accepted(report_sarif(report), None)
    assert "alice" not in place(result)[0]


def test_the_worst_results_are_kept_within_the_limits() -> None:
    many = tuple(finding(severity=Severity.WARNING) for _ in range(MOST_RESULTS))
    report = Report("m", (LevelResult("proof", 0.1, (*many, finding())),))
    found = accepted(report_sarif(report), None)
    assert len(found) == MOST_RESULTS
    assert found[0]["level"] == "error"


def test_several_models_are_one_run() -> None:
    cases = [
        CaseReport(name, "tp 2", 1, Report(name, (LevelResult("proof", 0.1, (finding(),)),))) for name in ("a", "b")
    ]
    text = reports_sarif([*cases, CaseReport("c", "tp 2", 2, error="no such file")])
    found = accepted(text, None)
    assert len({one["partialFingerprints"]["primaryLocationLineHash"] for one in found}) == 2
    (invocation,) = json.loads(text)["runs"][0]["invocations"]
    assert not invocation["executionSuccessful"]
    assert invocation["toolExecutionNotifications"][0]["message"]["text"] == "c, tp 2: no such file"


def test_a_fingerprint_does_not_depend_on_lines_and_numbers() -> None:
    first, second = (Finding("TP203", Severity.ERROR, f"{n} of 24", Place("e", "m", Source("m.py", n))) for n in (3, 4))
    hashes = {
        accepted(report_sarif(Report("m", (LevelResult("proof", 0.1, (one,)),))), None)[0]["partialFingerprints"][
            "primaryLocationLineHash"
        ]
        for one in (first, second)
    }
    assert len(hashes) == 1
