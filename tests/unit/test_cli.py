"""The command: what goes to stdout, what to stderr, and every exit code."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import pytest
import typer
import typer.core

import shardproof.launch.commands.cases.levels as climbing
import shardproof.launch.commands.verify as verifying
from shardproof.launch.cli import app, run
from shardproof.launch.commands.cases.request import RunLayout, run_layout
from shardproof.launch.commands.read_inputs import read_plan
from shardproof.launch.commands.suggestion import suggest_plan
from shardproof.launch.ranks.job import World, is_first_rank, surrounding
from shardproof.launch.result import EXIT_CODES, MisuseError
from shardproof.planner.ir.degrees import Degrees
from shardproof.planner.ir.explanation import LeftWhole
from shardproof.planner.ir.findings import Fault, Finding, Severity, Verdict
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.verify.report.report import LevelResult
from tests.forked import run_command
from tests.gate import PATH, ROOT

RIGHT = Finding("TP205", Severity.WARNING, "right, but")
WRONG = Finding("DY501", Severity.ERROR, "the logits differ")
OPEN = Finding("TP210", Severity.UNDECIDED, "no rule")

Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as the console script runs it."""
    code = "from shardproof.launch.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": PATH},
        check=False,
    )


@pytest.fixture
def levels(monkeypatch: Patch) -> Callable[..., list[str]]:
    """Puts given results in place of the proof and the run; gives the list of the levels that ran."""

    def install(proof: tuple[Finding, ...] = (), run: tuple[Finding, ...] = ()) -> list[str]:
        ran: list[str] = []

        def prove(*_: object, **__: object) -> LevelResult:
            ran.append("proof")
            return LevelResult("proof", 0.1, proof)

        def confirm(*_: object) -> LevelResult:
            ran.append("run")
            return LevelResult("run", 0.2, run)

        monkeypatch.setattr("shardproof.verify.proof.prove.prove", prove)
        monkeypatch.setattr(climbing, "_run", confirm)
        return ran

    return install


@pytest.mark.parametrize(
    ("proof", "run_", "code", "verdict", "ran"),
    [
        ((), (), 0, "confirmed", ["proof", "run"]),
        ((RIGHT,), (), 0, "confirmed", ["proof", "run"]),
        ((WRONG,), (), 1, "refuted", ["proof"]),
        ((OPEN,), (), 3, "not proved", ["proof", "run"]),
        ((OPEN,), (WRONG,), 1, "refuted", ["proof", "run"]),
    ],
)
def test_the_worst_level_decides(
    levels: Callable[..., list[str]],
    capsys: Captured,
    proof: tuple[Finding, ...],
    run_: tuple[Finding, ...],
    code: int,
    verdict: str,
    ran: list[str],
) -> None:
    have = levels(proof, run_)
    assert run(["verify", "llama", "--format", "json"]) == code
    data = json.loads(capsys.readouterr().out)
    assert data["verdict"] == verdict
    assert list(data["levels"]) == ran == have
    assert set(data["environment"]) == {"python", "torch", "transformers", "shardproof", "tested"}


def test_a_level_that_is_asked_for_runs_after_a_refuting_proof(levels: Callable[..., list[str]]) -> None:
    have = levels((WRONG,))
    assert run(["verify", "llama", "--level", "proof", "--level", "run", "-q"]) == 1
    assert have == ["proof", "run"]


def test_text_says_which_level_was_left_out(levels: Callable[..., list[str]], capsys: Captured) -> None:
    levels((WRONG,))
    run(["verify", "llama", "--tp", "2"])
    out = capsys.readouterr().out
    assert out.startswith("llama at tp 2: refuted\n")
    assert "not started: the plan is refuted already" in out


def test_proved_then_refuted_is_our_bug(levels: Callable[..., list[str]], capsys: Captured) -> None:
    levels((), (WRONG,))
    assert run(["verify", "llama", "--format", "json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [finding["code"] for finding in findings] == ["DY501", "DY507"]
    assert findings[1]["fault"] == "shardproof"
    assert "a bug in shardproof" in findings[1]["message"]


@pytest.mark.parametrize(
    "found",
    [
        Finding("DY504", Severity.UNDECIDED, "killed"),
        Finding("DY501", Severity.ERROR, "pipeline runtime", fault=Fault.CLIENT),
    ],
)
def test_a_killed_rank_or_a_client_contradicts_nothing(levels: Callable[..., list[str]], found: Finding) -> None:
    levels((), (found,))
    results = climbing._with_contradiction((LevelResult("proof", 0.0), LevelResult("run", 0.0, (found,))))
    assert results[1].findings == (found,)


def test_suggest_prints_the_plan_alone(monkeypatch: Patch, capsys: Captured) -> None:
    fake_suggestion(monkeypatch, Plan(tp=(TpEntry("layers.*.mlp.up_proj", "colwise", "its output is split"),)))
    assert run(["suggest", "llama", "--why"]) == 0
    out, err = capsys.readouterr()
    names: dict[str, object] = {}
    exec(out, names)
    assert names["base_model_tp_plan"] == {"layers.*.mlp.up_proj": "colwise"}
    assert "its output is split" in " ".join(err.split())
    assert "llama: proved at tp 4" in err


def test_suggest_as_json_is_a_plan_file(monkeypatch: Patch, capsys: Captured, tmp_path: Path) -> None:
    wanted = Plan(tp=(TpEntry("layers.*.mlp.up_proj", "colwise"),), unplanned={"model.norm": "whole"})
    fake_suggestion(monkeypatch, wanted)
    assert run(["suggest", "llama", "--format", "json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    data = json.loads(out)
    assert (data["model"], data["degrees"], data["verdict"]) == ("llama", [1, 4], "proved")
    assert (data["unplanned"], data["sharded_fraction"]) == ({"model.norm": "whole"}, 0.5)
    file = tmp_path / "plan.json"
    file.write_text(out)
    assert read_plan(file).to_json() == wanted.to_json()


def test_nothing_to_suggest_is_not_decided(monkeypatch: Patch, capsys: Captured) -> None:
    fake_suggestion(monkeypatch, Plan())
    assert run(["suggest", "llama"]) == 3
    assert "No tensor-parallel entry was found" in capsys.readouterr().out


def fake_suggestion(monkeypatch: Patch, wanted: Plan) -> None:
    """An inference that gives this plan, and a proof that holds at the least legal degree only."""
    import shardproof.verify.proof.prove

    class Suggested:
        plan, degrees, sharded_fraction, notes, explanation = wanted, (1, 4), 0.5, ("a note",), None
        owners = MappingProxyType({"": "LlamaConfig"})
        left = (LeftWhole("model.norm", 8, 32, "whole", 0.25), LeftWhole("model.small", 1, 4, "little", 0.001))

    def prove(_: object, plan: Plan, *, tp: int) -> LevelResult:
        assert (plan, tp) == (wanted, 4)
        return LevelResult("proof", 0.1)

    monkeypatch.setattr(suggest_plan, "_infer", lambda *_, **__: Suggested())
    monkeypatch.setattr(suggest_plan, "_degrees", lambda *_: Degrees((1, 4), {}))
    monkeypatch.setattr(shardproof.verify.proof.prove, "prove", prove)


@pytest.mark.parametrize(
    ("tp", "pp", "ranks", "wanted"),
    [
        (None, None, None, RunLayout(2, 1)),
        (None, 2, None, RunLayout(1, 2)),
        (4, None, None, RunLayout(4, 1)),
        (2, 2, None, RunLayout(2, 2)),
        (None, None, 4, RunLayout(4, 1)),
        (None, 2, 4, RunLayout(2, 2)),
        (2, 2, 4, RunLayout(2, 2)),
    ],
)
def test_degrees(tp: int | None, pp: int | None, ranks: int | None, wanted: RunLayout) -> None:
    assert run_layout(tp, pp, ranks=ranks) == wanted


def test_degrees_that_do_not_fill_the_job() -> None:
    with pytest.raises(MisuseError, match="tp 2 needs 2 ranks, and this job has 4"):
        run_layout(2, None, ranks=4)


MEETING = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, None),
        ({"RANK": "1", "WORLD_SIZE": "2", **MEETING}, World(1, 2, 1, 2)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1", **MEETING}, World(3, 4, 1, 2)),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, World(0, 4, 0, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),
    ],
)
def test_a_job_that_is_there_already(environment: dict[str, str], world: World | None) -> None:
    assert surrounding(environment) == world


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"RANK": "abc", "WORLD_SIZE": "2"}, "RANK of a job is 'abc', and not a number from 0 to 1"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE of a job is '', and not a number from 1 up"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK of a job is '2', and not a number from 0 to 1"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT do not say where they meet"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "0", **MEETING}, "LOCAL_WORLD_SIZE of a job is '0'"),
        ({"SLURM_PROCID": "x", "SLURM_STEP_NUM_TASKS": "2"}, "SLURM_PROCID of a job is 'x'"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS of a job is 'many'"),
    ],
)
def test_variables_that_make_no_job(
    environment: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    assert is_first_rank(environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run(["verify", "llama", "-q"]) == 2
    assert sentence in capsys.readouterr().err
    assert run(["explain", "TP203"]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["verify"], "there is no model to work on: give a MODEL, or name models under [tool.shardproof]"),
        (["suggets"], "No such command 'suggets'. Did you mean 'suggest'? See `plan --help`."),
        (
            ["verify", "llama", "--levl", "run"],
            "No such option: --levl. Did you mean --level? See `plan verify --help`.",
        ),
        (["verify", "llama", "--zz"], "No such option: --zz; see `plan verify --help`."),
        (["verify", "llama", "--format", "jsn"], "Did you mean json? See `plan verify --help`."),
        (["check", "llama", "--backend", "vlm", "-q"], "sglang, tgi, torchtitan, deepspeed, nemo. Did you mean vllm?"),
        (["verify", "llama", "--tp", "0"], "a degree is a whole number from 1 up, not '0'"),
        (["verify", "llama", "--tp", "-2"], "a degree is a whole number from 1 up, not '-2'"),
        (["verify", "llama", "--pp", "1.5"], "a degree is a whole number from 1 up, not '1.5'"),
        (["verify", "llama", "--level", "engine"], "'engine' is not one of 'proof', 'run', 'train', 'client'"),
        (
            ["verify", "llama", "--set", "depth"],
            "--set takes KEY=VALUE, such as --set num_hidden_layers=2, not 'depth'.",
        ),
        (["verify", "llama", "--set", "depth=2"], "depth names no field of LlamaConfig"),
        (
            ["verify", "llama", "--tp", "1"],
            "one rank is the single-device model itself; give --tp or --pp of 2 or more.",
        ),
        (["verify", "llama", "--for", "mlx"], "there is no client 'mlx'; the clients are transformers, vllm"),
        (["verify", "llama", "--for", "vllm", "--level", "run"], "--level run is Transformers' own runtime"),
        (["verify", "llama", "--level", "client", "--client-python", "none"], "none: there is no such interpreter"),
        (["verify", "llama", "--level", "client"], "needs vLLM's own Python"),
        (["verify", "llama", "--set", "num_hidden_layers=-3"], "--set num_hidden_layers=-3 is no count"),
        (
            ["verify", "llama", "--pp", "64"],
            "--pp 64: llama has 32 layers, and every stage needs one; give 32 at most.",
        ),
        (["verify", "./lama"], "./lama: there is no such file or folder"),
        (["check", "llama", "--backend", ","], "--backend names no client; give some of transformers"),
        (["layout", "llama", "--devices", "999999999999", "--memory", "1GiB"], "131072"),
        (["verify", "lama"], "Did you mean"),
        (["verify", "llama", "--plan", "none.json"], "none.json: there is no such plan file"),
        (["explain", "TP299"], "did you mean TP219"),
    ],
)
def test_misuse_is_one_sentence_and_exit_code_2(arguments: list[str], sentence: str, capsys: Captured) -> None:
    assert run([*arguments, *(["-q"] if arguments[0] == "verify" else [])]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert sentence in err
    assert err.startswith("plan: ")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not valid JSON (Expecting property name enclosed in double quotes at line 1, column 2)"),
        ("[]", "a plan file holds one JSON object"),
        ('{"tp": {}}', "unknown plan key 'tp'; the keys are base_model_tp_plan"),
        ('{"base_model_tp_plans": {}}', "(Did you mean base_model_tp_plan?)"),
        ('{"base_model_tp_plan": {"a": 1}}', "base_model_tp_plan['a'] must be a style string"),
        ("\x00\xff", "line 1, column 1"),
    ],
)
def test_a_broken_plan_file(text: str, sentence: str, tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "plan.json"
    file.write_text(text)
    assert run(["verify", "llama", "--plan", str(file), "-q"]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_a_folder_without_weights(tmp_path: Path, capsys: Captured) -> None:
    fields = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert run(["verify", str(tmp_path), "--weights", "--level", "run", "-q"]) == 2
    assert "this folder holds no weights" in capsys.readouterr().err


def test_experts_that_no_entry_splits(capsys: Captured) -> None:
    assert run(["verify", "llama", "--ep", "2", "--level", "proof", "--format", "json", "-q"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["code"] == "PL104"
    assert "no expert-parallel entry" in finding["message"]


def test_a_folder_is_no_plan_file(tmp_path: Path, capsys: Captured) -> None:
    assert run(["verify", "llama", "--plan", str(tmp_path), "-q"]) == 2
    assert "this plan file is no regular file" in capsys.readouterr().err


def plan_file(folder: Path, **entries: str) -> str:
    file = folder / "plan.json"
    file.write_text(
        json.dumps({"base_model_tp_plan": {key.replace("__", "."): style for key, style in entries.items()}})
    )
    return str(file)


@pytest.mark.parametrize("level", ["proof", "run"])
def test_a_plan_that_is_none_is_refuted_at_either_level(level: str, tmp_path: Path, capsys: Captured) -> None:
    """No rank is started for it."""
    file = plan_file(tmp_path, norm="colwize", noorm="colwise")
    assert run(["verify", "llama", "--plan", file, "--level", level, "--format", "json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in data["findings"]] == ["PL101", "PL102"]
    assert list(data["levels"]) == [level]


def test_an_unexpected_error_is_one_sentence(monkeypatch: Patch, capsys: Captured) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(verifying, "read_model", fail)
    assert run(["verify", "llama"]) == 3
    err = capsys.readouterr().err
    assert (
        err == "plan: this is a bug in shardproof: RuntimeError: first line second line. --debug shows the traceback.\n"
    )
    assert run(["verify", "llama", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c(monkeypatch: Patch, capsys: Captured) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verifying, "read_model", interrupt)
    assert run(["verify", "llama"]) == 130
    assert capsys.readouterr().err == "plan: interrupted.\n"


def test_ctrl_c_in_a_late_import_of_transformers(monkeypatch: Patch, capsys: Captured) -> None:
    def interrupted(*_: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as stop:
            raise ModuleNotFoundError("Could not import module 'PreTrainedModel'") from stop

    monkeypatch.setattr("shardproof.launch.commands.verify.verify_plan", lambda *_, **__: interrupted())
    assert run(["verify", "llama", "-q"]) == 130
    assert capsys.readouterr().err == "plan: interrupted.\n"


@pytest.mark.parametrize(
    ("closed", "sentence"), [(">&-", "stdout is closed"), (">/dev/full", "No space left on device")]
)
def test_a_result_that_cannot_be_written(closed: str, sentence: str) -> None:
    code = "from shardproof.launch.entry import main; import sys; sys.argv = ['plan', 'explain', 'TP203']; main()"
    done = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_nobody_reads_stderr() -> None:
    code = "from shardproof.launch.entry import main; import sys; sys.argv = ['plan', 'explain', 'TP299']; main()"
    done = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, code], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 2


def test_what_a_model_prints_is_kept_from_stdout(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(
        "import warnings\nprint('noise')\nwarnings.warn('a warning')\n"
        "from transformers import LlamaForCausalLM as NoisyForCausalLM\n"
    )
    asked = ("verify", "noisy.py:NoisyForCausalLM", "--level", "proof", "--format", "json", "-q")
    ended = run_command(*asked, here=tmp_path)
    assert json.loads(ended.out)["verdict"] == "proved"
    assert ended.err.strip() == "noise"
    assert ended.code == 0


def test_exit_codes_of_the_process(tmp_path: Path) -> None:
    assert plan("--version").stdout.startswith("shardproof ")
    assert plan("explain", "TP203").returncode == 0
    assert plan("verify", "--tp", "0", "llama").returncode == 2
    alone = plan()
    assert (alone.returncode, alone.stderr) == (0, "")
    file = plan_file(tmp_path, norm="colwize")
    assert plan("verify", "llama", "--plan", file, "-q").returncode == 1


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "from shardproof.launch.cli import main; main()"
    shell = f"{sys.executable} -c '{code}' explain | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stderr == ""


def test_verdicts_have_exit_codes() -> None:
    assert {verdict: EXIT_CODES[verdict] for verdict in Verdict} == {
        Verdict.PROVED: 0,
        Verdict.CONFIRMED: 0,
        Verdict.REFUTED: 1,
        Verdict.NOT_PROVED: 3,
    }


@pytest.mark.parametrize(("rank", "codes"), [("0", (2, 1)), ("1", (0, 0))])
def test_in_a_job_the_first_rank_answers(rank: str, codes: tuple[int, int], tmp_path: Path) -> None:
    job = {"RANK": rank, "WORLD_SIZE": "2", **MEETING}
    file = plan_file(tmp_path, norm="colwize")
    misused = run_command("verify", "llama", "--tp", "4", environment=job)
    refuted = run_command("verify", "llama", "--plan", file, environment=job)
    assert (misused.code, refuted.code) == codes
    assert bool(misused.err) == (rank == "0")
    assert ("PL101" in refuted.out) == (rank == "0")


@pytest.mark.parametrize("arguments", [[], ["--no-color"]])
def test_without_a_command_there_are_three_to_try(arguments: list[str], capsys: Captured) -> None:
    assert run(arguments) == 0
    out, err = capsys.readouterr()
    tried = [line.split("  ")[1].strip() for line in out.splitlines() if line.startswith("  plan ")]
    assert [words.split()[1] for words in tried] == ["suggest", "verify", "check"]
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    for words in tried:
        _, name, *given = words.split()
        assert group.commands[name].make_context(name, given) is not None
    assert err == ""


def test_help_lists_the_commands(capsys: Captured) -> None:
    assert run(["--help"]) == 0
    assert "suggest  Infer a plan, prove it, and print or write it.\n" in capsys.readouterr().out


def test_a_place_to_meet_is_a_host_and_a_port(capsys: Captured) -> None:
    assert run(["verify", "llama", "--nnodes", "2", "--rdzv-endpoint", "first-machine"]) == 2
    assert "--rdzv-endpoint first-machine is not HOST:PORT" in capsys.readouterr().err
