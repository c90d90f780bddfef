"""`plan suggest --write`: the source after it, the way back, and what is refused."""

import ast
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardproof.launch.authoring.installed_files import is_installed
from shardproof.launch.authoring.plan_attributes import write_plan
from shardproof.launch.authoring.source_files import diff, rewrite, undo
from shardproof.launch.cli import run
from shardproof.launch.result import MisuseError
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import load
from shardproof.planner.transformers_facts.version import style_exists
from shardproof.verify.proof.compare_plans import compare
from shardproof.verify.report.attributes import Mapped, NoClassError, with_attributes
from shardproof.verify.report.difference import Backed
from tests.versions import wants

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_model.py"
TP = {"layers.*.up": "colwise", "layers.*.down": "rowwise"}
PP: Mapped = {"embed": (("ids",), ("states",)), "layers": (("states", "mask"), ("states",))}

Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: Patch) -> Path:
    """The way back is kept here, not in the user's home."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def attributes(source: bytes) -> dict[str, object]:
    """The class attributes of the only class, as Python reads them."""
    names: dict[str, object] = {"Base": object}
    exec(compile(source, "source", "exec"), names)
    return {key: value for key, value in vars(names["Mine"]).items() if key.endswith("_plan")}


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("class Mine(Base): pass\n", "class Mine(Base):\n    {tp}\n"),
        ("class Mine: ...", "class Mine:\n    {tp}"),
        ('class Mine:\n    """Doc."""\n', 'class Mine:\n    """Doc."""\n\n    {tp}\n'),
        (
            "class Mine:\n    kind = 'x'\n\n    n: int = 3\n",
            "class Mine:\n    kind = 'x'\n    {tp}\n\n    n: int = 3\n",
        ),
        ("class Mine:\n    tp_plan = None  # why\n", "class Mine:\n    {tp}  # why\n"),
        ("class Mine:\n    tp_plan: dict | None = None\n", "class Mine:\n    tp_plan: dict | None = {value}\n"),
        ("class Mine:\n    tp_plan = dict(a='b')\n", "class Mine:\n    {tp}\n"),
        (
            "class Mine:\n    kind = 'x'; tp_plan = None\n    n: int = 3\n",
            "class Mine:\n    kind = 'x'; tp_plan = None\n    {tp}\n    n: int = 3\n",
        ),
        ("if 1:\n    class Mine:\n        kind = 'x'\n", "if 1:\n    class Mine:\n        kind = 'x'\n        {tp}\n"),
    ],
)
def test_where_an_attribute_goes(source: str, wanted: str) -> None:
    made = with_attributes(source.encode(), "Mine", {"tp_plan": TP}).decode()
    deep = "        " if source.startswith("if") else "    "
    value = "{\n" + "".join(f'{deep}    "{key}": "{style}",\n' for key, style in TP.items()) + deep + "}"
    assert made == wanted.replace("{tp}", "tp_plan = {value}").replace("{value}", value)
    assert with_attributes(made.encode(), "Mine", {"tp_plan": TP}) == made.encode()


@pytest.mark.parametrize("annotation", ["dict | None", "ClassVar[dict | None]"])
def test_a_dataclass_gets_an_attribute_and_no_field(annotation: str) -> None:
    """A field cannot have a dict for its default: the class statement would raise."""
    source = (
        "from dataclasses import dataclass\nfrom typing import ClassVar\n"
        f"@dataclass\nclass Mine:\n    tp_plan: {annotation} = None\n    n: int = 3\n"
    )
    made = with_attributes(source.encode(), "Mine", {"tp_plan": TP}, fields=True)
    assert attributes(made) == {"tp_plan": TP}
    assert (f"tp_plan: {annotation} = " in made.decode()) is annotation.startswith("ClassVar")


def test_a_method_stands_after_an_empty_line() -> None:
    found = with_attributes(b"class A:\n    def one(self):\n        pass\n", "A", {"_tp_plan": {"a": "colwise"}})
    assert found.decode() == (
        'class A:\n    _tp_plan = {\n        "a": "colwise",\n    }\n\n    def one(self):\n        pass\n'
    )


def test_entries_that_stay_keep_their_place_their_quotes_and_their_comments() -> None:
    source = (
        "class Mine:\n    tp_plan = {\n        # heads\n        'layers.*.down' : 'rowwise',  # summed\n"
        "        'gone': 'colwise',\n        'layers.*.up': 'rowwise', # split\n    }\n"
    )
    assert with_attributes(source.encode(), "Mine", {"tp_plan": TP}).decode() == (
        "class Mine:\n    tp_plan = {\n        # heads\n        'layers.*.down' : 'rowwise',  # summed\n"
        "        'layers.*.up': \"colwise\", # split\n    }\n"
    )


def test_stages_stand_in_the_order_given() -> None:
    source = b"class Mine:\n    pp_plan = {\n        'layers': (['states', 'mask'], ['states']),  # all\n    }\n"
    made = with_attributes(source, "Mine", {"pp_plan": PP})
    assert list(ast.literal_eval(made.decode().partition("= ")[2])) == ["embed", "layers"]
    assert b"'layers': (['states', 'mask'], ['states']),  # all\n" in made


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_the_byte_order_mark_stay(line_end: str, mark: bytes) -> None:
    source = mark + f"class Mine:{line_end}    kind = 'ä'{line_end}".encode()
    made = with_attributes(source, "Mine", {"tp_plan": TP})
    assert made.startswith(source)
    assert made.count(b"\n") == made.count(line_end.encode())


plain = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=8)


@settings(max_examples=30)
@given(st.dictionaries(plain, plain, max_size=4), st.dictionaries(plain, plain, max_size=4))
def test_any_mapping_over_any_other_reads_back_equal(old: dict[str, str], new: dict[str, str]) -> None:
    lines = "".join(f"        {key!r}: {value!r},\n" for key, value in old.items())
    source = f"class Mine:\n    x_plan = {{\n{lines}    }}\n".encode()
    made = with_attributes(source, "Mine", {"x_plan": new})
    assert attributes(made) == {"x_plan": new}
    assert with_attributes(made, "Mine", {"x_plan": new}) == made
    assert new != old or made == source


def test_a_class_that_is_not_there() -> None:
    with pytest.raises(NoClassError):
        with_attributes(b"class Other: pass\n", "Mine", {"tp_plan": TP})


def test_write_and_undo(tmp_path: Path, monkeypatch: Patch, capsys: Captured) -> None:
    """The whole command on a model of one's own: written, carried, written again without a change, taken back."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "custom_model.py"
    file.write_bytes(EXAMPLE.read_bytes())
    reference = "custom_model.py:ComboForCausalLM"
    assert run(["suggest", reference, "--write"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("--- a/custom_model.py\n+++ b/custom_model.py\n")
    assert '+        "blocks.*.mixer.fuse": "rowwise",\n' in out
    assert "`plan undo custom_model.py` takes it back." in err
    loaded = load(reference)
    carried = carried_plan(loaded, build(loaded))
    assert {entry.pattern for entry in carried.head_tp} == {"readout"}
    written = file.read_bytes()
    assert run(["suggest", reference, "--write"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == ""
    assert "carries this plan already" in err
    assert file.read_bytes() == written
    assert run(["undo", "custom_model.py"]) == 0
    assert "-    base_model_tp_plan = {" in capsys.readouterr().out
    assert file.read_bytes() == EXAMPLE.read_bytes()
    assert run(["undo", "custom_model.py"]) == 2
    assert "there is nothing to undo" in capsys.readouterr().err


PLAIN = "        super().__init__(**kwargs)\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (PLAIN, f"{PLAIN}        self.base_model_tp_plan = {{}}\n"),
        ("\n\ndef plain_attention", "\n\nComboConfig.base_model_tp_plan = {}\n\n\ndef plain_attention"),
    ],
)
def test_a_plan_that_something_else_overrules_is_taken_back(
    old: str, new: str, tmp_path: Path, monkeypatch: Patch, capsys: Captured
) -> None:
    """A fresh process reads what was written: the class statement is not all that decides."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "custom_model.py"
    source = EXAMPLE.read_text().replace(old, new, 1)
    file.write_text(source)
    assert run(["suggest", "custom_model.py:ComboForCausalLM", "--write", "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert "nothing was changed, because with the plan written ComboConfig.base_model_tp_plan is set again" in err
    assert out == ""
    assert file.read_text() == source
    assert run(["undo", "custom_model.py"]) == 2


def test_a_class_that_carries_a_plan_which_its_instances_do_not(tmp_path: Path) -> None:
    plan = Plan(tp=(TpEntry("tokens", "embedding_rowwise"),))
    file = tmp_path / "custom_model.py"
    told = '    model_type = "combo"\n'
    source = EXAMPLE.read_text().replace(PLAIN, f"{PLAIN}        self.base_model_tp_plan = {{}}\n", 1)
    file.write_text(source.replace(told, f'{told}    base_model_tp_plan = {{"tokens": "embedding_rowwise"}}\n'))
    loaded = load(f"{file}:ComboForCausalLM")
    with pytest.raises(MisuseError, match=r"carry this plan already, but ComboConfig.base_model_tp_plan is set again"):
        write_plan(loaded, build(loaded), plan)


def test_what_does_not_import_any_more_is_taken_back(tmp_path: Path, monkeypatch: Patch, capsys: Captured) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "shardproof.launch.authoring.plan_attributes.with_attributes",
        lambda source, *_, **__: source + b"raise ValueError('gone')\n",
    )
    file = tmp_path / "custom_model.py"
    file.write_bytes(EXAMPLE.read_bytes())
    assert run(["suggest", "custom_model.py:ComboForCausalLM", "--write", "--quiet"]) == 2
    err = capsys.readouterr().err
    assert "the model cannot be read again" in err
    assert "raised ValueError: gone on line" in err
    assert file.read_bytes() == EXAMPLE.read_bytes()


def test_an_installed_package_is_not_changed_unasked(monkeypatch: Patch) -> None:
    loaded = load("llama", overrides={"num_hidden_layers": "2"})
    plan = Plan(tp=(TpEntry("layers.*.mlp.up_proj", "colwise"),))
    with pytest.raises(MisuseError, match=r"LlamaConfig is defined in configuration_llama.py of an installed package"):
        write_plan(loaded, build(loaded), plan)


@pytest.mark.parametrize("editable", [False, True])
def test_what_an_installer_recorded_is_an_installed_package_anywhere(tmp_path: Path, editable: bool) -> None:
    """As after `pip install --target`; of an editable install the record lists a link to the source, and not the source."""
    file = tmp_path / "combo" / "custom_model.py"
    file.parent.mkdir()
    file.write_bytes(EXAMPLE.read_bytes())
    (record := tmp_path / "combo-1.0.dist-info" / "RECORD").parent.mkdir()
    record.write_text(
        "_combo.pth,,\n" if editable else '"combo/custom_model.py",sha256=x,1\ncombo-1.0.dist-info/RECORD,,\n'
    )
    assert is_installed(file) is not editable


def test_a_plan_that_is_carried_already_is_not_written(tmp_path: Path) -> None:
    """Also in an installed package: nothing would change."""
    loaded = load("llama", overrides={"num_hidden_layers": "2"})
    model = build(loaded)
    written = write_plan(loaded, model, carried_plan(loaded, model))
    assert (written.diff, written.notes[0]) == ("", "llama carries this plan already; there is nothing to write.")


def test_several_files_are_written_all_or_none(tmp_path: Path, monkeypatch: Patch) -> None:
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    before = {first: b"1\n", second: b"2\n"}
    for file, content in before.items():
        file.write_bytes(content)
    rename, works = Path.replace, iter([True, False])

    def failing(self: Path, target: Path) -> Path:
        if target.suffix == ".py" and self.suffix != ".py" and not next(works, True):
            raise PermissionError
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(MisuseError, match=r"b\.py cannot be written \(PermissionError\); nothing was changed"):
        rewrite(before, {first: b"3\n", second: b"4\n"})
    assert {file: file.read_bytes() for file in before} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.py", "b.py", "state"]
    with pytest.raises(MisuseError, match="nothing to undo"):
        undo([first])


def test_undo_goes_back_step_by_step_and_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_bytes(b"\xff one\n")
    file.chmod(0o640)
    rewrite({file: b"\xff one\n"}, {file: b"two\n"})
    rewrite({file: b"two\n"}, {file: b"three\n"})
    assert file.stat().st_mode & 0o777 == 0o640
    file.write_bytes(b"mine\n")
    with pytest.raises(MisuseError, match="changed after it was written, so undoing would lose that"):
        undo([file])
    assert file.read_bytes() == b"mine\n"
    file.write_bytes(b"three\n")
    assert [undo([file]), undo([file])] == [{file: b"three\n"}, {file: b"two\n"}]
    assert file.read_bytes() == b"\xff one\n"


def test_a_file_that_changed_meanwhile_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_bytes(b"newer\n")
    with pytest.raises(MisuseError, match="changed since it was read"):
        rewrite({file: b"read\n"}, {file: b"planned\n"})
    assert file.read_bytes() == b"newer\n"


def test_the_diff_shows_no_absolute_path(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    assert diff({file: b"1"}, {file: b"2"}) == (
        "--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-1\n\\ No newline at end of file\n+2\n\\ No newline at end of file\n"
    )


@pytest.mark.parametrize(
    ("own", "backed", "codes"),
    [
        ({"layers.*.mlp.down_proj": "rowwise_rep"}, Backed.SECOND, ("TP206",)),
        ({"layers.*.self_attn.o_proj": None}, Backed.SECOND, ("TP203",)),
        pytest.param({"norm": "replicate"}, Backed.BOTH, (), marks=wants("replicate")),
        ({"layers.*.mlp.act_fn": "replicated_with_grad_allreduce"}, Backed.BOTH, ()),
    ],
)
def test_each_difference_has_its_verdict(own: Mapping[str, str | None], backed: Backed, codes: tuple[str, ...]) -> None:
    from shardproof.planner.tracing.trace import trace

    loaded = load("llama", overrides={"num_hidden_layers": "2"})
    model = build(loaded)
    right = carried_plan(loaded, model)
    entries = {**{entry.pattern: entry.style for entry in right.tp}, **own}
    wrong = replace(right, tp=tuple(TpEntry(key, style) for key, style in entries.items() if style))
    (found,) = compare(model, trace(model), wrong, right, tp=2)
    ((key, style),) = own.items()
    assert (found.key, found.first, found.backed) == (key, style, backed)
    assert set(codes) <= set(found.codes)


def test_a_difference_in_the_stages() -> None:
    from shardproof.planner.tracing.trace import trace

    loaded = load("llama", overrides={"num_hidden_layers": "2"})
    model = build(loaded)
    right = carried_plan(loaded, model)
    (found,) = compare(model, trace(model), replace(right, pp=right.pp[:2]), right, tp=2)
    assert (found.attribute, found.key, found.first) == ("base_model_pp_plan", "norm", None)
    assert (found.second, found.backed) == ("hidden_states -> hidden_states", Backed.SECOND)


# The expert plans of Transformers up to 5.18 have styles of which nothing is known, so no difference of theirs is decided.
MISSING = (Backed.SECOND, ("TP214",)) if style_exists("ep_dispatch_experts") else (Backed.OPEN, ())


@pytest.mark.parametrize(
    ("key", "style", "backed", "codes"),
    [
        ("layers.*.mlp.experts.down_proj", None, *MISSING),
        ("layers.*.mlp.experts", None, *MISSING),
        ("layers.*.mlp.experts.down_proj", "rowwise", Backed.OPEN, ()),
    ],
)
def test_a_difference_in_the_experts(key: str, style: str | None, backed: Backed, codes: tuple[str, ...]) -> None:
    from shardproof.planner.tracing.trace import trace

    loaded = load("mixtral", overrides={"num_hidden_layers": "1"})
    model = build(loaded)
    right = carried_plan(loaded, model)
    entries = {**{entry.pattern: entry.style for entry in right.ep}, key: style}
    wrong = replace(right, ep=tuple(TpEntry(one, given) for one, given in entries.items() if given))
    (found,) = compare(model, trace(model), wrong, right, tp=2)
    assert (found.attribute, found.key, found.first) == ("base_model_ep_plan", key, style)
    assert (found.backed, found.codes) == (backed, codes)


def test_a_read_only_file_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "configuration.py"
    file.write_bytes(b"old")
    file.chmod(0o444)
    with pytest.raises(MisuseError, match=r"configuration\.py is read-only; nothing was changed"):
        rewrite({file: b"old"}, {file: b"new"})
    assert file.read_bytes() == b"old"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """What it points to is changed, and is taken back under either name."""
    real, link = tmp_path / "real.py", tmp_path / "link.py"
    real.write_bytes(b"old")
    link.symlink_to(real)
    rewrite({link: b"old"}, {link: b"new"})
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    undo([link])
    assert link.is_symlink()
    assert real.read_bytes() == b"old"
