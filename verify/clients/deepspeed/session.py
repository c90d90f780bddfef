"""One rank of DeepSpeed AutoTP: forward, backward and one optimizer step by the plan, against one device.

Run by `launch.clients.client_ranks` with the client's interpreter, once a rank: `session.py JOB.json`, with the
variables of torchrun set. The job is `{"folder", "client", "plan": {pattern: style}, "degree", "out"}`, and may have
`"tensor_parallel"`, a section of a DeepSpeed config with a `partition_config` in place of the plan. Rank 0 writes
`{"differences": {what: largest difference}}` to `out`, a rank that fails `{"error", "rank"}` to `out` with its number.

The plan is given where DeepSpeed reads it (0.19.8, `runtime/tensor_parallel/config.py`, `_get_hf_tp_plan`): on the
config and on the class with the head, as `plan suggest --write` puts it there.
"""

import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "DS_IGNORE_CUDA_DETECTION": "1",
}
RANK = int(os.environ.get("RANK", "0"))
RATE = 0.1
TOKENS = ((3, 5, 7, 9, 11, 2, 4, 6, 8, 10, 12, 1), (1, 12, 10, 8, 6, 4, 2, 11, 9, 7, 5, 3))


def main(job: dict[str, Any]) -> None:
    """Train one step with the plan and on one device, and compare on rank 0."""
    os.environ.update(SETTINGS)
    torch = import_module("torch")
    torch.manual_seed(0)
    transformers = import_module("transformers")
    given = {"dtype": torch.float32, "trust_remote_code": True, "attn_implementation": "eager"}
    plain = transformers.AutoModelForCausalLM.from_pretrained(job["folder"], **given).eval()
    model = _with_plan(plain, job, given)
    wanted = _step_of_one_device(plain)
    found = _compared(_step_of_deepspeed(model, job), wanted, job["degree"])
    if RANK == 0:
        Path(job["out"]).write_text(json.dumps({"differences": found}))
    torch.distributed.barrier()
    os._exit(0)


def _with_plan(plain: Any, job: dict[str, Any], given: dict[str, Any]) -> Any:
    """Another model of the checkpoint, whose class and config carry the plan."""
    kind, prefix = type(plain), f"{plain.base_model_prefix}." if plain.base_model is not plain else ""
    plan = {} if "tensor_parallel" in job else job["plan"]
    config = kind.config_class.from_pretrained(job["folder"])
    config.base_model_tp_plan = {
        key.removeprefix(prefix): style for key, style in plan.items() if key.startswith(prefix)
    }
    kind._tp_plan = {key: style for key, style in plan.items() if not key.startswith(prefix)}
    return kind.from_pretrained(job["folder"], config=config, **given).eval()


def _batch() -> dict[str, Any]:
    ids = import_module("torch").tensor(TOKENS)
    return {"input_ids": ids, "labels": ids, "use_cache": False}


def _gradients(model: Any) -> dict[str, Any]:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def _parameters(model: Any) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def _step_of_one_device(model: Any) -> dict[str, Any]:
    torch = import_module("torch")
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    answer = model(**_batch())
    answer.loss.backward()
    gradients = _gradients(model)
    optimizer.step()
    return {"loss": answer.loss, "logits": answer.logits, "gradients": gradients, "parameters": _parameters(model)}


def _step_of_deepspeed(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    """The same step through DeepSpeed's engine, with what this rank holds."""
    torch = import_module("torch")
    torch.distributed.init_process_group("gloo")
    deepspeed = import_module("deepspeed")  # after the step of one device: it replaces parts of torch.distributed
    # Collectives in shared memory, which a compiler would have to build.
    vars(import_module("deepspeed.comm.torch"))["build_shm_op"] = lambda: None
    engine = deepspeed.initialize(
        model=model,
        model_parameters=list(model.parameters()),
        optimizer=torch.optim.SGD(model.parameters(), lr=RATE),
        config={
            "train_micro_batch_size_per_gpu": len(TOKENS),
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,  # by default it clips to a norm of 1
            "tensor_parallel": job.get("tensor_parallel", {"autotp_size": job["degree"]}),
            "zero_optimization": {"stage": 0},
        },
    )[0]
    answer = engine(**_batch())
    engine.backward(answer.loss)
    gradients = _gradients(model)
    engine.step()
    return {"loss": answer.loss, "logits": answer.logits, "gradients": gradients, "parameters": _parameters(model)}


def _compared(got: dict[str, Any], wanted: dict[str, Any], degree: int) -> dict[str, float]:
    """The largest differences on any rank; of gradients relative to the largest of the parameter."""
    found = {
        "loss": _difference(got["loss"].detach(), wanted["loss"].detach(), degree),
        "logits": _difference(got["logits"].detach(), wanted["logits"].detach(), degree),
        "gradients, relative": 0.0,
        "parameters after a step": 0.0,
    }
    for what, label in (("gradients", "gradients, relative"), ("parameters", "parameters after a step")):
        for name, value in sorted(wanted[what].items()):
            if name not in got[what]:
                raise ValueError(f"{name} has no {what[:-1]} after the step")
            scale = max(float(value.abs().max()), 1e-3) if what == "gradients" else 1.0
            found[label] = max(found[label], _difference(got[what][name], value, degree) / scale)
    return found


def _difference(part: Any, whole: Any, degree: int) -> float:
    """The largest difference, after the ranks' parts have been put together where they are not whole; every rank calls it."""
    torch = import_module("torch")
    parts: list[Any] = [None] * degree
    torch.distributed.all_gather_object(parts, part.cpu())
    if all(one.shape == whole.shape for one in parts):
        return max(float((one - whole).abs().max()) for one in parts)
    cut = [d for d in range(whole.ndim) if sum(one.shape[d] for one in parts) == whole.shape[d]]
    if not cut:
        raise ValueError(f"parts {[list(one.shape) for one in parts]} do not make {list(whole.shape)}")
    return float((torch.cat(parts, cut[0]) - whole).abs().max())


if __name__ == "__main__":
    read = json.loads(Path(sys.argv[1]).read_text())
    try:
        main(read)
    except BaseException as error:
        text = {"error": f"{type(error).__name__}: {error}", "rank": RANK, "trace": traceback.format_exc()[-6000:]}
        Path(f"{read['out']}.{RANK}").write_text(json.dumps(text))
        os._exit(1)
