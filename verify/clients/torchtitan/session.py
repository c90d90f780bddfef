"""One rank of torchtitan: forward, backward and one optimizer step of its Transformers backend, against one device.

Run by `launch.clients.client_ranks` with the client's interpreter, once a rank: `session.py JOB.json`, with the
variables of torchrun set. The job is `{"folder", "client", "plan": {pattern: style}, "degree", "out"}`; no plan is read. Rank 0
writes `{"differences": {what: largest difference}}` to `out`, a rank that fails `{"error", "rank"}` to `out` with its number.

The steps are torchtitan's own (0.3.0): `experiments/transformers_modeling_backend/model.py` (`update_from_config`, the model),
`parallelize.py` (`parallelize_hf_transformers`), `components/loss.py` (`cross_entropy_loss`, of logits split by vocabulary), and
what `trainer.py` (`_forward_backward_body`) does around them. Weights are those of the checkpoint in the place of new ones. FSDP
is applied, with one replica: it is what sums gradients of whole parameters over the ranks, and knows such parameters from torch
2.14 on.
"""

import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",  # flex attention is compiled otherwise
}
RANK = int(os.environ.get("RANK", "0"))
RATE = 0.1
TOKENS = ((3, 5, 7, 9, 11, 2, 4, 6, 8, 10, 12, 1), (1, 12, 10, 8, 6, 4, 2, 11, 9, 7, 5, 3))
NO_LABEL = -100
BACKEND = "torchtitan.experiments.transformers_modeling_backend"


def main(job: dict[str, Any]) -> None:
    """Train one step in torchtitan and on one device, and compare on rank 0."""
    os.environ.update(SETTINGS)
    torch = import_module("torch")
    torch.manual_seed(0)
    torch.autograd.set_multithreading_enabled(False)  # as `init_distributed` does
    flex: Any = import_module("torch.nn.attention.flex_attention")
    flex._validate_device = lambda *_: None  # its dense form has a backward on CPU, the compiled one has none
    device: Any = import_module("torchtitan.tools.utils")  # before others take the names from it
    device.device_type, device.device_module = "cpu", torch.cpu
    transformers = import_module("transformers")
    given = {"dtype": torch.float32, "attn_implementation": "eager"}
    plain = transformers.AutoModelForCausalLM.from_pretrained(job["folder"], **given).eval()
    state = {name: value.detach().clone() for name, value in plain.state_dict().items()}
    wanted = _step_of_one_device(_untied(plain))
    found = _compared(_step_of_torchtitan(job, state), wanted)
    if RANK == 0:
        Path(job["out"]).write_text(json.dumps({"differences": found}))
    torch.distributed.barrier()
    os._exit(0)


def _untied(model: Any) -> Any:
    """The model with a head of its own: torchtitan trains a tied one apart from the table."""
    nn = import_module("torch").nn
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is table.weight:
        head.weight = nn.Parameter(table.weight.detach().clone())
    return model


def _batch() -> tuple[Any, Any, int]:
    """Tokens, the label of each position, and how many positions have one."""
    ids = import_module("torch").tensor(TOKENS)
    labels = ids.roll(-1, 1)
    labels[:, -1] = NO_LABEL
    return ids, labels, int((labels != NO_LABEL).sum())


def _step_of_one_device(model: Any) -> dict[str, Any]:
    torch = import_module("torch")
    ids, labels, count = _batch()
    logits = model(input_ids=ids, use_cache=False).logits
    summed = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
    loss = summed / count
    loss.backward()
    named = dict(model.named_parameters())
    gradients = {name: one.grad.clone() for name, one in named.items() if one.grad is not None}
    torch.optim.SGD(model.parameters(), lr=RATE).step()
    parameters = {name: one.detach().clone() for name, one in named.items()}
    return {"loss": loss.detach(), "logits": logits.detach(), "gradients": gradients, "parameters": parameters}


def _built(job: dict[str, Any], state: dict[str, Any]) -> Any:
    """torchtitan's model of the checkpoint, with the checkpoint's weights."""
    backend = import_module(BACKEND)
    config = import_module(f"{BACKEND}.model").HFTransformerModel.Config(model_config=backend.TitanModelConfig())
    config.update_from_config(
        config=SimpleNamespace(
            training=SimpleNamespace(seq_len=len(TOKENS[0])),
            parallelism=None,
            debug=SimpleNamespace(deterministic=False),
            hf_model=job["folder"],
            loss=SimpleNamespace(),
        )
    )
    model = config.build().eval()
    lost = model.model.load_state_dict(state, strict=False)
    wrong = [*lost.unexpected_keys, *lost.missing_keys]
    if wrong:
        raise ValueError(f"{wrong[0]} of the checkpoint has no place in torchtitan's model, or is missing there")
    return model


def _step_of_torchtitan(job: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    torch = import_module("torch")
    torch.distributed.init_process_group("gloo")
    configs = import_module("torchtitan.config")
    utils = import_module("torchtitan.distributed.utils")
    dims = import_module("torchtitan.distributed").ParallelDims(
        dp_replicate=1, dp_shard=1, cp=1, tp=job["degree"], pp=1, ep=1, world_size=job["degree"]
    )
    dims.build_mesh()
    model = _built(job, state)
    model = _parallelized(model, dims, configs)
    ids, labels, count = _batch()
    positions = torch.arange(ids.shape[1]).expand_as(ids).contiguous()
    with utils.get_spmd_context(parallel_dims=dims)():
        logits = model(ids, positions=positions)
        summed = import_module("torchtitan.components.loss").cross_entropy_loss(
            logits, labels, global_vocab_size=model.model.config.vocab_size
        )
        loss = summed / count
        loss.backward()
    return _after_step(model, logits, loss)


def _parallelized(model: Any, dims: Any, configs: Any) -> Any:
    parallelize = import_module(f"{BACKEND}.parallelize")
    if not hasattr(import_module("torch").distributed, "_is_spmd_types_available"):
        raise ImportError(
            "torchtitan's parameters need the FSDP of torch 2.14, which sums their gradients over the ranks"
        )
    return parallelize.parallelize_hf_transformers(
        model,
        parallel_dims=dims,
        training=configs.TrainingConfig(
            seq_len=len(TOKENS[0]), mixed_precision_param="float32", mixed_precision_reduce="float32"
        ),
        parallelism=configs.ParallelismConfig(tensor_parallel_degree=dims.tp),
        compile_config=configs.CompileConfig(enable=False),
        ac_config=None,
        dump_folder="",
    )


def _after_step(model: Any, logits: Any, loss: Any) -> dict[str, Any]:
    """What this rank holds; the step of the optimizer is made here."""
    torch = import_module("torch")
    named = dict(model.model.named_parameters())
    gradients = {name: one.grad.clone() for name, one in named.items() if one.grad is not None}
    torch.optim.SGD(model.parameters(), lr=RATE).step()
    parameters = {name: one.detach() for name, one in named.items()}
    return {"loss": loss.detach(), "logits": logits.detach(), "gradients": gradients, "parameters": parameters}


def _whole(part: Any, shape: Any) -> Any:
    """A tensor of this shape, of which each rank may have a part along one dim; every rank calls it.

    Parts may be unequal, of which FSDP does not know: it makes distributed tensors of the parts as if they were equal.
    """
    distributed, torch = import_module("torch").distributed, import_module("torch")
    part = part.to_local() if hasattr(part, "to_local") else part
    cut = [dim for dim, (held, size) in enumerate(zip(part.shape, shape, strict=True)) if held != size]
    if len(cut) != 1:
        return part
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, part)
    return torch.cat(parts, dim=cut[0])


def _compared(got: dict[str, Any], wanted: dict[str, Any]) -> dict[str, float]:
    """The largest differences on any rank; of gradients relative to the largest of the parameter."""
    found = {what: _difference(got[what], wanted[what]) for what in ("loss", "logits")}
    for what, label in (("gradients", "gradients, relative"), ("parameters", "parameters after a step")):
        worst = 0.0
        for name, value in sorted(wanted[what].items()):
            if name not in got[what]:
                raise ValueError(f"{name} has no {what[:-1]} after the step")
            scale = max(float(value.abs().max()), 1e-3) if what == "gradients" else 1.0
            worst = max(worst, _difference(got[what][name], value) / scale)
        found[label] = worst
    parts: list[Any] = [None] * import_module("torch").distributed.get_world_size()
    import_module("torch").distributed.all_gather_object(parts, found)
    return {label: max(part[label] for part in parts) for label in found}


def _difference(part: Any, whole: Any) -> float:
    part = _whole(part, whole.shape)
    if part.shape != whole.shape:
        raise ValueError(f"a rank has {list(part.shape)} where one device has {list(whole.shape)}")
    return float((part - whole).abs().max())


if __name__ == "__main__":
    read = json.loads(Path(sys.argv[1]).read_text())
    try:
        main(read)
    except BaseException as error:
        text = {"error": f"{type(error).__name__}: {error}", "rank": RANK, "trace": traceback.format_exc()[-6000:]}
        Path(f"{read['out']}.{RANK}").write_text(json.dumps(text))
        os._exit(1)
