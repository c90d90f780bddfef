"""Forms of a plan, each executed by the tool that takes it, on two gloo ranks, against one device."""

import copy
import json
import os
import socket
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module
from transformers import AutoConfig, AutoModelForCausalLM

from shardproof.launch.authoring.plan_forms import parallelize_form
from shardproof.launch.authoring.tool_forms import ToolForm, in_form
from shardproof.launch.clients.checkpoint import write_checkpoint
from shardproof.launch.clients.client_ranks import ClientRanks, ClientStep
from shardproof.launch.commands.suggestion.suggest_plan import suggest_plan
from shardproof.launch.output.console import Progress
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.loading.load import LoadedModel, load

SMALL = {
    "hidden_size": "32",
    "intermediate_size": "48",
    "num_hidden_layers": "2",
    "num_attention_heads": "4",
    "num_key_value_heads": "2",
    "head_dim": "8",
    "vocab_size": "64",
}
DEEPSPEED = "SHARDPROOF_DEEPSPEED_PYTHON"


class Plain(nn.Module):
    """A model that is none of Transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(64, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 64)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.table(ids)
        out: torch.Tensor = self.head(hidden + self.down(torch.relu(self.up(hidden))))
        return out


PLAIN = {
    "table": "embedding_rowwise",
    "up": "colwise",
    "down": "rowwise",
    "head": "colwise_gather_output",
}


def small(name: str, **more: str) -> LoadedModel:
    known = set(AutoConfig.for_model(name).to_dict())
    return load(name, overrides={key: value for key, value in (SMALL | more).items() if key in known})


def printed(loaded: LoadedModel, form: ToolForm, client: str | None) -> str:
    suggested = suggest_plan(loaded, progress=Progress(quiet=True), client=client, tp=2)
    made, suggested = in_form(loaded, suggested, form)
    assert suggested.report.verdict is Verdict.PROVED, suggested.report.findings
    return made.text


def joined(rank: int, port: int) -> None:
    world = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ.update(world | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")


def whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def logits(answer: Any) -> torch.Tensor:
    made: torch.Tensor = answer if isinstance(answer, torch.Tensor) else answer.logits
    return made


def parallelized(rank: int, port: int, folder: str, text: str) -> None:
    """One rank: the printed plan on a model, forward and backward."""
    joined(rank, port)
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(folder) if folder else Plain()
    plain.eval()
    model, names = copy.deepcopy(plain), dict[str, Any]()
    exec(text, names)
    parallelize_module(model, init_device_mesh("cpu", (2,)), names["PLAN"])
    ids = torch.randint(0, 64, (2, 7))
    wanted, got = logits(plain(ids)), logits(model(ids))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    for answer in (wanted, got):
        answer.square().mean().backward()
    given = {name: whole(value.grad) for name, value in model.named_parameters() if value.grad is not None}
    for name, value in plain.named_parameters():
        torch.testing.assert_close(given[name], value.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert any(isinstance(value, DTensor) for value in model.parameters())
    torch.distributed.destroy_process_group()


def distributed(rank: int, port: int, folder: str, text: str) -> None:
    """One rank: Transformers loads the checkpoint with the printed config."""
    joined(rank, port)
    names = dict[str, Any]()
    exec(text, names)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, distributed_config=names["config"])
    ids = torch.arange(3, 17).reshape(2, 7)
    with torch.no_grad():
        torch.testing.assert_close(
            whole(logits(model(input_ids=ids, use_cache=False))),
            logits(plain(input_ids=ids, use_cache=False)),
            rtol=1e-4,
            atol=1e-5,
        )
    assert any(isinstance(value, DTensor) for value in model.parameters())
    torch.distributed.destroy_process_group()


def on_two_ranks(work: Any, folder: str, text: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    spawn: Callable[..., Any] = import_module("torch.multiprocessing").spawn
    spawn(work, (port, folder, text), nprocs=2)


@pytest.mark.parametrize(
    ("name", "more"), [("llama", {}), ("llama", {"tie_word_embeddings": "true"}), ("qwen3", {})], ids=str
)
def test_parallelize_module_takes_the_printed_plan(name: str, more: dict[str, str], tmp_path: Path) -> None:
    loaded = small(name, **more)
    text = printed(loaded, ToolForm.PARALLELIZE, "parallelize_module")
    assert ("SummedGradients()" in text) == (name == "qwen3")
    assert ("stays whole" in text) == bool(more)
    write_checkpoint(loaded, tmp_path)
    on_two_ranks(parallelized, str(tmp_path), text)


def test_parallelize_module_takes_a_plan_of_a_plain_module() -> None:
    on_two_ranks(parallelized, "", parallelize_form("a plan", PLAIN).text)


def test_transformers_takes_the_printed_config_over_its_own_plan(tmp_path: Path) -> None:
    """The plan that hrm_text ships cannot be loaded; merged over it, the suggested one has to leave its entries whole."""
    loaded = small("hrm_text", num_layers_per_stack="1", num_attention_heads="2")
    text = printed(loaded, ToolForm.DISTRIBUTED_CONFIG, None)
    assert '"replicate"' in text
    write_checkpoint(loaded, tmp_path)
    on_two_ranks(distributed, str(tmp_path), text)


@pytest.mark.skipif(DEEPSPEED not in os.environ, reason=f"{DEEPSPEED} names no interpreter")
@pytest.mark.parametrize("more", [{}, {"tie_word_embeddings": "true"}], ids=str)
def test_deepspeed_takes_the_printed_partition_config(more: dict[str, str], tmp_path: Path) -> None:
    loaded = small("qwen3", **more)
    section = json.loads(printed(loaded, ToolForm.DEEPSPEED, "deepspeed"))["tensor_parallel"]
    assert section.get("vocab_parallel_lm_head", False) == bool(more)
    write_checkpoint(loaded, tmp_path)
    with ClientRanks(os.environ[DEEPSPEED], timeout=200) as ranks:
        (result,) = ranks.run((ClientStep(tmp_path, "deepspeed", {}, 2, tensor_parallel=section),))
    assert not result.error
    assert max(result.differences.values()) < 1e-4
