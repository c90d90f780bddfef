"""One rank of NeMo AutoModel: forward, backward and one optimizer step by the plan, against one device.

Run by `launch.clients.client_ranks` with the client's interpreter, once a rank: `session.py JOB.json`, with the
variables of torchrun set. The job is `{"folder", "client", "plan": {pattern: style}, "degree", "out"}`, and may have
`"recipe_plan"`, Python that makes a `PLAN` of torch's styles, which is given as `tp_plan`. Rank 0 writes
`{"differences": {what: largest difference}}` to `out`, a rank that fails `{"error", "rank"}` to `out` with its number.

The steps are NeMo's own (0.7.0): `components/distributed/model_parallelizer.py` (`parallelize_model`: it checks the heads,
chooses a plan, applies it and wraps the model for FSDP2), `components/loss/masked_ce.py`, and what
`recipes/llm/train_ft.py` (`_run_train_optim_step`) does between the backward and the optimizer. The model is Transformers'
own class, as with `force_hf: true`. The plan is given where it is read, on the config and on the class with the head.
"""

import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

SETTINGS = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
RANK = int(os.environ.get("RANK", "0"))
RATE = 0.1
TOKENS = ((3, 5, 7, 9, 11, 2, 4, 6, 8, 10, 12, 1), (1, 12, 10, 8, 6, 4, 2, 11, 9, 7, 5, 3))
NO_LABEL = -100
NEMO = "nemo_automodel.components"


def main(job: dict[str, Any]) -> None:
    """Train one step with the plan and on one device, and compare on rank 0."""
    os.environ.update(SETTINGS)
    torch = import_module("torch")
    torch.manual_seed(0)
    import_module("nemo_automodel")
    transformers = import_module("transformers")
    given = {"dtype": torch.float32, "trust_remote_code": True, "attn_implementation": "eager"}
    plain = transformers.AutoModelForCausalLM.from_pretrained(job["folder"], **given).eval()
    model = _with_plan(plain, job, given)
    wanted = _step_of_one_device(plain)
    found = _compared(_step_of_nemo(model, job), wanted)
    if RANK == 0:
        Path(job["out"]).write_text(json.dumps({"differences": found}))
    torch.distributed.barrier()
    os._exit(0)


def _with_plan(plain: Any, job: dict[str, Any], given: dict[str, Any]) -> Any:
    """Another model of the checkpoint, whose class and config carry the plan."""
    kind, prefix = type(plain), f"{plain.base_model_prefix}." if plain.base_model is not plain else ""
    plan = job["plan"]
    config = kind.config_class.from_pretrained(job["folder"])
    config.base_model_tp_plan = {
        key.removeprefix(prefix): style for key, style in plan.items() if key.startswith(prefix)
    }
    kind._tp_plan = {key: style for key, style in plan.items() if not key.startswith(prefix)}
    return kind.from_pretrained(job["folder"], config=config, **given).eval()


def _batch() -> tuple[Any, Any, int]:
    """Tokens, the label of each position, and how many positions have one."""
    ids = import_module("torch").tensor(TOKENS)
    labels = ids.roll(-1, 1)
    labels[:, -1] = NO_LABEL
    return ids, labels, int((labels != NO_LABEL).sum())


def _logits(model: Any, ids: Any) -> Any:
    return model(input_ids=ids, use_cache=False).logits


def _after_step(model: Any, logits: Any, loss: Any) -> dict[str, Any]:
    """What is compared, whole on every rank; the step of the optimizer is made here."""
    torch = import_module("torch")
    gradients = {name: _whole(one.grad) for name, one in model.named_parameters() if one.grad is not None}
    torch.optim.SGD(model.parameters(), lr=RATE).step()
    parameters = {name: _whole(one) for name, one in model.named_parameters()}
    return {"loss": _whole(loss), "logits": _whole(logits), "gradients": gradients, "parameters": parameters}


def _whole(value: Any) -> Any:
    """A tensor that may be distributed, put together; every rank calls it."""
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def _step_of_one_device(model: Any) -> dict[str, Any]:
    torch = import_module("torch")
    ids, labels, count = _batch()
    logits = _logits(model, ids)
    lost = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
    loss = lost / count
    loss.backward()
    return _after_step(model, logits, loss)


def _step_of_nemo(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    """The same step through NeMo's own strategy, loss and synchronisation of gradients."""
    torch = import_module("torch")
    torch.distributed.init_process_group("gloo")
    meshes = import_module(f"{NEMO}.distributed.mesh")
    replicas = import_module(f"{NEMO}.distributed.tp_replicas")
    losses = import_module(f"{NEMO}.loss.utils")
    # By default it computes in bfloat16.
    whole = torch.distributed.fsdp.MixedPrecisionPolicy(cast_forward_inputs=False)
    given: dict[str, Any] = {"PLAN": None}
    exec(job.get("recipe_plan", ""), given)
    strategy = import_module(f"{NEMO}.distributed.config").FSDP2Config(mp_policy=whole, tp_plan=given["PLAN"])
    context = meshes.MeshContext.build(strategy, meshes.ParallelismSizes(tp_size=job["degree"]))
    sharded = import_module(f"{NEMO}.distributed.model_parallelizer").parallelize_model(model, context)
    replicas.broadcast_tp_replicas([sharded], context.device_mesh)
    ids, labels, count = _batch()
    logits = _logits(sharded, ids)
    loss_fn = import_module(f"{NEMO}.loss.masked_ce").MaskedCrossEntropy()
    loss = losses.calculate_loss(loss_fn, logits=logits, labels=labels, num_label_tokens=count)
    loss.backward()
    replicas.synchronize_tp_replica_gradients([sharded], context.device_mesh)
    return _after_step(sharded, logits, loss)


def _compared(got: dict[str, Any], wanted: dict[str, Any]) -> dict[str, float]:
    """The largest differences on any rank; of gradients relative to the largest of the parameter."""
    found = {"loss": _difference(got["loss"], wanted["loss"]), "logits": _difference(got["logits"], wanted["logits"])}
    for what, label in (("gradients", "gradients, relative"), ("parameters", "parameters after a step")):
        worst = 0.0
        for name, value in sorted(wanted[what].items()):
            if name not in got[what] or got[what][name].shape != value.shape:
                raise ValueError(f"{name} has no {what[:-1]} after the step, or one of another shape")
            scale = max(float(value.abs().max()), 1e-3) if what == "gradients" else 1.0
            worst = max(worst, float((got[what][name] - value).abs().max()) / scale)
        found[label] = worst
    parts: list[Any] = [None] * import_module("torch").distributed.get_world_size()
    import_module("torch").distributed.all_gather_object(parts, found)
    return {label: max(part[label] for part in parts) for label in found}


def _difference(part: Any, whole: Any) -> float:
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
