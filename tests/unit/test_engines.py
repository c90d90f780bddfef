"""Serving in an engine, without the engine: whose error is told when a rank fails, and what is written to disk."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks.engines.families import family
from benchmarks.engines.rows import Answer, Row, read_rows, write_row
from shardproof.launch.clients.checkpoint import EXPERT_MULTIPLE, HEAD_DIMS, LATENT, servable, write_checkpoint
from shardproof.launch.clients.confirm import with_other_code
from shardproof.launch.clients.vllm_engine import PROMPTS, Served, difference
from shardproof.launch.processes.first_cause import PEER_ERRORS
from shardproof.planner.ir.findings import Finding, Severity
from shardproof.planner.loading.configs.config_fields import head_width
from shardproof.planner.loading.load import load
from shardproof.verify.clients.vllm import session as vllm_session

LOST = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"
CASE = {"folder": "", "tp": 2, "pp": 1, "overrides": {}}


def case(
    monkeypatch: pytest.MonkeyPatch, first: Callable[[], object], second: Callable[[], object]
) -> dict[str, object]:
    """What two ranks come to that run these instead of an engine."""

    def served(_: object, __: object) -> object:
        return first() if os.environ["RANK"] == "0" else second()

    monkeypatch.setattr(vllm_session, "_served", served)
    monkeypatch.setattr(vllm_session, "GRACE", 2.0)
    return vllm_session.serve_case(CASE, {"timeout": 30.0, "peer_errors": PEER_ERRORS})


def raises(error: Exception, after: float = 0.0) -> Callable[[], object]:
    def run() -> object:
        time.sleep(after)
        raise error

    return run


def test_a_failing_rank_is_told_before_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    answer = case(monkeypatch, lambda: time.sleep(25), raises(ValueError("heads do not divide")))
    assert answer["error"] == "ValueError: heads do not divide"
    assert answer["rank"] == 1
    assert time.monotonic() - began < 20


def test_the_first_cause_is_told_and_not_the_loss_of_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = case(monkeypatch, raises(RuntimeError(LOST)), raises(KeyError("layers"), after=0.5))
    assert answer["error"] == "KeyError: 'layers'"


def test_a_rank_that_is_killed_says_by_what(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = case(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL), raises(RuntimeError(LOST), after=0.5))
    assert answer["error"] == "the process was ended by signal 9"
    assert answer["rank"] == 0


def test_what_the_last_rank_served_with_what_the_first_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    served = {"tokens": [[1]], "logprobs": [[[0.0]]], "held": 8}
    answer = case(monkeypatch, lambda: {**served, "held": 4}, lambda: served)
    assert answer["tokens"] == [[1]]
    assert answer["held"] == 4


def test_a_checkpoint_has_heads_that_the_engine_has() -> None:
    small = servable(load("gptj"), tp=2, pp=2)
    assert head_width(small.config.get_text_config()) in HEAD_DIMS


def test_a_servable_twin_has_no_window_that_the_model_does_not_feel() -> None:
    assert servable(load("moshi"), tp=2, pp=2).config.sliding_window == load("moshi").config.sliding_window
    assert servable(load("mistral"), tp=2, pp=2).config.sliding_window < 10


def test_a_servable_twin_has_the_widths_of_experts_and_of_latent_attention() -> None:
    text = servable(load("deepseek_v3"), tp=2, pp=2).config.get_text_config()
    assert {name: getattr(text, name) for name in LATENT} == LATENT
    assert text.hidden_size % EXPERT_MULTIPLE == 0


def test_a_checkpoint_with_code_names_its_base_model(tmp_path: Path) -> None:
    model = write_checkpoint(family("ladder", tmp_path), tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["auto_map"]["AutoModel"] == "ladder.LadderModel"
    assert (tmp_path / "out" / "ladder.py").is_file()
    rows = []
    for prompt in PROMPTS:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, 1]]), use_cache=False).logits[0].double()
        rows.append(torch.log_softmax(logits, -1)[len(prompt) - 1 : -1])
    tokens = tuple((1,) for _ in PROMPTS)
    assert difference(model, Served(tokens, tuple(rows))) == 0
    assert difference(model, Served(tokens, tuple(row + 0.5 for row in rows))) == pytest.approx(0.5)
    assert difference(model, Served(error="no")) is None


def test_rows_tell_where_proof_and_engine_disagree(tmp_path: Path) -> None:
    right, wrong = Answer("proved", difference=1e-6), Answer("proved", difference=2.0)
    row = Row("llama", alone=Answer(difference=1e-6), answers={"ours": {"tp 2": right, "pp 2": wrong}})
    write_row(tmp_path / "rows", row)
    kept = read_rows(tmp_path / "rows")["llama"]
    assert kept == row
    assert kept.disagreements() == ["llama, ours, pp 2: proved, and the engine is wrong"]


def test_a_refusal_says_that_the_engine_runs_another_version_of_the_model() -> None:
    found = Finding("BE452", Severity.ERROR, "vLLM fails", why="it ran")
    assert with_other_code(found, transformers.__version__) == found
    assert "beside vLLM lies Transformers 4.0.0" in with_other_code(found, "4.0.0").why
