"""`suggest --why`: groups with the ops that tie and forbid them, what stays whole, and patches that would shard more."""

import json
from pathlib import Path

import pytest

from shardproof.planner.inference.explanation.source_edits import unfix_views
from shardproof.planner.inference.suggest import suggest
from shardproof.planner.ir.explanation import Explanation, Patch
from shardproof.planner.ir.findings import Source
from shardproof.verify.report.formats.explanation import explanation_json, explanation_text

ODD = "tests.zoo.odd_models"


@pytest.fixture(scope="module")
def baked() -> Explanation:
    """The explanation of a model whose views hold the number of heads."""
    found = suggest(f"{ODD}:OddBaked", why=True).explanation
    assert found is not None
    return found


def test_a_sharded_group_names_its_parameters_and_the_ops_that_tie_them(baked: Explanation) -> None:
    group = next(group for group in baked.groups if group.size == 224)
    assert group.sharded
    assert not group.forbids
    assert {(m.parameter, m.dim) for m in group.members} == {
        ("body.steps.*.two.up_.weight", 0),
        ("body.steps.*.two.up_.bias", 0),
        ("body.steps.*.two.tt.weight", 1),
    }
    assert [tie.op for tie in group.ties] == ["linear", "relu", "linear"]


def test_a_whole_group_names_what_forbids_it(baked: Explanation) -> None:
    group = next(group for group in baked.groups if "body.fin.weight" in {m.parameter for m in group.members})
    assert not group.sharded
    assert {(tie.op, tie.module) for tie in group.forbids} == {("rms_norm", "body.fin")}


def test_what_is_left_whole_comes_with_its_bytes(baked: Explanation) -> None:
    left = {left.pattern: left for left in baked.left}
    assert left["body.fin"].elements == 96
    assert left["body.fin"].bytes == 4 * 96
    assert "norm" in left["body.fin"].reason


def test_fixed_head_counts_become_open_where_that_was_followed(baked: Explanation) -> None:
    (patch,) = baked.patches
    assert patch.tried
    assert patch.unlocks == tuple(f"body.steps.*.one.{name}" for name in ("aa", "bb", "cc", "dd"))
    added = [line for line in patch.diff.splitlines() if line.startswith("+ ")]
    assert len(added) == 3
    assert all(".view(b, n, -1, self.d)" in line for line in added)


def test_no_patch_where_the_group_stays_wrong_without_the_count() -> None:
    found = suggest(f"{ODD}:OddSloped", why=True).explanation
    assert found is not None
    assert found.patches == ()


def test_transposed_weights_become_linear_layers() -> None:
    found = suggest(f"{ODD}:OddTurned", why=True).explanation
    assert found is not None
    changed = {patch.unlocks[0].rpartition(".")[2]: patch for patch in found.patches}
    assert not any(patch.tried for patch in changed.values())
    assert "+        self.pp = nn.Linear(config.width, config.inner)" in changed["pp"].diff
    assert "+        self.qq = nn.Linear(config.inner, config.width)" in changed["qq"].diff


def test_an_open_size_elsewhere_is_closed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "viewed.py").write_text("def f(x, b, h, d):\n    return x.view(b, -1, h, d)\n")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("viewed")
    diff = unfix_views({Source("viewed.py", 2): -2})
    assert "+    return x.view(b, x.shape[1], -1, d)" in diff
    assert unfix_views({Source("viewed.py", 1): -2}) == ""


def test_text_and_json_say_the_same(baked: Explanation) -> None:
    text, data = explanation_text(baked), json.loads(json.dumps(explanation_json(baked)))
    assert set(data) == {"groups", "left", "patches"}
    assert len(data["groups"]) == text.count("group of ")
    assert data["patches"][0]["diff"].rstrip() in text
    assert "linear in body.steps.*.two.up_ (tests/zoo/odd_models.py" in text


def test_a_patch_that_was_not_tried_says_so() -> None:
    text = explanation_text(Explanation(patches=(Patch("Change it.", ("a.b",), "--- a\n+++ b\n", tried=False),)))
    assert text.startswith("patch for a.b; not tried")
