"""One rank of a client that runs Transformers' own sharded model: generation, or one training step, against one device.

Run by `launch.clients.client_ranks` with the client's interpreter, once a rank: `session.py JOB.json`, with the
variables of torchrun set. The job is `{"folder", "client", "plan": {pattern: style}, "degree", "out"}`; rank 0 writes
`{"differences": {what: largest difference}}` to `out`, a rank that fails `{"error", "rank"}` to `out` with its number.

Sources: Transformers 5.23.0 `generation/continuous_batching/continuous_api.py` (`generate_batch`), accelerate 1.15
`parallelism_config.py` (`ParallelismConfig(tp_size=)`: it shards nothing, and expects sharded parameters), TRL 1.16
`trainer/sft_trainer.py`, torch 2.13 `torch.distributed.tensor.parallel` (`parallelize_module`).
"""

import copy
import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

SETTINGS = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
RANK = int(os.environ.get("RANK", "0"))
PROMPTS = ((3, 5, 7, 9, 11), (2, 4, 6, 8, 10))
NEW = 6
RATE = 0.1
TOKENS = (3, 5, 7, 9, 11, 2, 4, 6, 8, 10, 12, 1)


def main(job: dict[str, Any]) -> None:
    """Run the client with the plan and on one device, and compare on rank 0."""
    os.environ.update(SETTINGS)
    torch = import_module("torch")
    torch.manual_seed(0)
    rank = os.environ["RANK"]
    found = CLIENTS[job["client"]](job)
    if rank == "0":
        Path(job["out"]).write_text(json.dumps({"differences": found}))
    torch.distributed.barrier()
    os._exit(0)


def _model(job: dict[str, Any], *, sharded: bool) -> Any:
    transformers = import_module("transformers")
    given: dict[str, Any] = {}
    if sharded:
        settings = import_module("transformers.distributed").DistributedConfig
        given["distributed_config"] = settings(tp_size=job["degree"], tp_plan=job["plan"])
    kind = transformers.AutoModelForCausalLM
    return kind.from_pretrained(job["folder"], dtype="float32", trust_remote_code=True, **given).eval()


def _generation(job: dict[str, Any]) -> dict[str, float]:
    """`generate` and `generate_batch`, greedy."""
    torch = import_module("torch")
    plain, model = _model(job, sharded=False), _model(job, sharded=True)
    ids = torch.tensor(PROMPTS)
    settings = {
        "max_new_tokens": NEW,
        "min_new_tokens": NEW,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    answers = [
        one.generate(
            ids, attention_mask=torch.ones_like(ids), output_logits=True, return_dict_in_generate=True, **settings
        )
        for one in (plain, model)
    ]
    rows = [torch.stack(answer.logits).log_softmax(-1) for answer in answers]
    found = {"generate, log-probability": float((rows[0] - rows[1]).abs().max())}
    wanted = answers[0].sequences[:, ids.shape[1] :].tolist()
    found["generate, tokens that differ"] = float(
        sum(
            a != b
            for w, g in zip(wanted, answers[1].sequences[:, ids.shape[1] :].tolist(), strict=True)
            for a, b in zip(w, g, strict=True)
        )
    )
    config = import_module("transformers").GenerationConfig(**settings)
    batching = import_module("transformers").ContinuousBatchingConfig(
        num_blocks=16, max_batch_tokens=64, use_cuda_graph=False
    )
    made = model.generate_batch(
        inputs=[list(row) for row in PROMPTS],
        generation_config=config,
        continuous_batching_config=batching,
        warmup=False,
    )
    got = [output.generated_tokens for _, output in sorted(made.items())]
    found["generate_batch, tokens that differ"] = float(
        sum(a != b for w, g in zip(sorted(wanted), sorted(got), strict=True) for a, b in zip(w, g, strict=True))
        + sum(abs(len(w) - len(g)) for w, g in zip(sorted(wanted), sorted(got), strict=True))
    )
    return found


def _step(model: Any, optimizer: Any, backward: Callable[[Any], None]) -> float:
    torch = import_module("torch")
    ids = torch.tensor([TOKENS])
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    backward(loss)
    optimizer.step()
    return float(loss.detach())


def _whole(value: Any) -> Any:
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach()


def _changes(plain: Any, model: Any) -> dict[str, float]:
    """The largest difference of a parameter after the step; every rank has to call it, since parameters are all-gathered."""
    ours = {name: _whole(value) for name, value in model.named_parameters()}
    worst = 0.0
    for name, value in plain.named_parameters():
        mine = ours.get(name)
        if mine is None or mine.shape != value.shape:
            raise ValueError(f"{name} is not there after the step, or has another shape")
        worst = max(worst, float((mine - value.detach()).abs().max()))
    return {"parameters after a step": worst}


def _alone() -> None:
    """Make the process group, then hide the ranks from the environment, so that the client takes this for a single process."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


def _accelerate(job: dict[str, Any]) -> dict[str, float]:
    """accelerate prepares a model that Transformers has sharded; forward, backward, step.

    Its own `ParallelismConfig(tp_size=)` is refused on CPUs (`_validate_accelerator`), and shards nothing either.
    """
    torch = import_module("torch")
    plain, model = _model(job, sharded=False), _model(job, sharded=True)
    _alone()
    accelerator = import_module("accelerate").Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=RATE))
    first = torch.optim.SGD(plain.parameters(), lr=RATE)
    losses = _step(plain, first, lambda loss: loss.backward()), _step(prepared, optimizer, accelerator.backward)
    return {"loss": abs(losses[0] - losses[1]), **_changes(plain, accelerator.unwrap_model(prepared))}


def _parallelize(job: dict[str, Any]) -> dict[str, float]:
    """torch's own `parallelize_module` by the plan's entries; forward, backward, step."""
    torch = import_module("torch")
    torch.distributed.init_process_group("gloo")
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (job["degree"],))
    plain = _model(job, sharded=False)
    model = copy.deepcopy(plain)
    parallel = import_module("torch.distributed.tensor.parallel")
    whole = import_module("torch.distributed.tensor").Replicate()
    styles = {
        "colwise": lambda: parallel.ColwiseParallel(),
        "rowwise": lambda: parallel.RowwiseParallel(),
        "colwise_gather_output": lambda: parallel.ColwiseParallel(output_layouts=whole),
        "rowwise_split_input": lambda: parallel.RowwiseParallel(input_layouts=whole),
        "embedding_rowwise": lambda: parallel.RowwiseParallel(input_layouts=whole),
        "replicated_with_grad_allreduce": lambda: _summed_gradients(parallel.ParallelStyle),
    }
    unknown = sorted({style for style in job["plan"].values() if style not in styles})
    if unknown:
        raise ValueError(f"torch's parallelize_module has no style for {', '.join(unknown)}")
    layout = {
        pattern: style for pattern, style in ((p, styles[s]()) for p, s in job["plan"].items()) if style is not None
    }
    parallel.parallelize_module(model, mesh, layout)
    optimizers = [torch.optim.SGD(one.parameters(), lr=RATE) for one in (plain, model)]
    losses = [_step(one, by, lambda loss: loss.backward()) for one, by in zip((plain, model), optimizers, strict=True)]
    return {"loss": abs(losses[0] - losses[1]), **_changes(plain, model)}


def _summed_gradients(base: Any) -> Any:
    """A torch style for parameters that are whole on every rank, and whose gradients are summed over the ranks."""
    torch = import_module("torch")

    class Summed(base):  # type: ignore[misc]  # torch is imported late
        def _apply(self, module: Any, mesh: Any) -> Any:
            for parameter in module.parameters():
                parameter.register_post_accumulate_grad_hook(
                    lambda one: torch.distributed.all_reduce(one.grad, group=mesh.get_group())
                )
            return module

    return Summed()


def _trl(job: dict[str, Any]) -> dict[str, float]:
    """TRL's SFTTrainer on a model that Transformers has sharded, against the same step of one device."""
    plain, model = _model(job, sharded=False), _model(job, sharded=True)
    around = dict(os.environ)
    _alone()
    trl, folder = import_module("trl"), Path(job["out"]).parent
    losses = [_trained(plain, trl, folder)]
    import_module("accelerate.state").AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.update(around)
    # The trainer gives accelerate the degree that it reads off the model, which accelerate takes on accelerators alone.
    import_module("accelerate.parallelism_config").ParallelismConfig._validate_accelerator = lambda *_: None
    losses.append(_trained(model, trl, folder))
    return {"loss": abs(losses[0] - losses[1]), **_changes(plain, model)}


def _trained(model: Any, trl: Any, folder: Path) -> float:
    """One step of the trainer, in place; its loss."""
    torch = import_module("torch")
    settings = trl.SFTConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        max_steps=1,
        per_device_train_batch_size=1,
        learning_rate=RATE,
        optim="sgd",
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = trl.SFTTrainer(
        model=model,
        args=settings,
        train_dataset=import_module("datasets").Dataset.from_list([{"input_ids": list(TOKENS)}]),
        processing_class=_Tokenizer(),
        data_collator=lambda rows: _batch(torch.tensor([row["input_ids"] for row in rows])),
    )
    return float(trainer.train().training_loss)


def _batch(ids: Any) -> dict[str, Any]:
    return {"input_ids": ids, "labels": ids, "attention_mask": ids.new_ones(ids.shape)}


def _Tokenizer() -> Any:  # noqa: N802  # made where its parts are
    """The smallest tokenizer that the trainer takes."""
    tokenizers, transformers = import_module("tokenizers"), import_module("transformers")
    words = {word: number for number, word in enumerate(("<pad>", "<eos>", "a"))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


CLIENTS = {"transformers": _generation, "accelerate": _accelerate, "parallelize": _parallelize, "trl": _trl}

if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    try:
        main(given)
    except BaseException as error:
        text = {"error": f"{type(error).__name__}: {error}", "rank": RANK, "trace": traceback.format_exc()[-6000:]}
        Path(f"{given['out']}.{RANK}").write_text(json.dumps(text))
        os._exit(1)
