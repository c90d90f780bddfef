"""BE431: a model that the client cannot cut into stages."""

from shardproof.planner.ir.findings import Fault, Finding, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE431",
        name="no-stages",
        severity=Severity.ERROR,
        what="The client cannot make pipeline stages of this model with this plan.",
        why="Engines read the keys of the pipeline plan and their order, and want exactly one list of"
        " layers among them. TGI and DeepSpeed have no pipeline of Transformers models.",
        use_instead="The pipeline plan of `plan suggest`, or tensor parallelism alone.",
        fix_safety="No edit is offered: edits change tensor-parallel entries only.",
        invalid=(
            Example(
                note="TGI has no pipeline parallelism.",
                model="llama",
                client="tgi",
                stages=2,
            ),
        ),
        valid=(
            Example(
                note="One list of layers, and what stands before and after it.",
                model="llama",
                client="vllm",
                stages=2,
            ),
        ),
    )
)


def no_pipelines(client: str, cite: str) -> Finding:
    """The client has no pipeline parallelism at all."""
    because, needed = "it has no pipeline parallelism", "tensor parallelism alone"
    return _no_stages(client, cite, because=because, found="no stages", needed=needed, fault=Fault.CLIENT)


def no_pipeline_plan(client: str, cite: str) -> Finding:
    """There is no key to cut the model by."""
    because, found = "the model has no pipeline plan", "no base_model_pp_plan"
    return _no_stages(client, cite, because=because, found=found, needed="the plan of `plan suggest`", fault=Fault.PLAN)


def keys_do_not_fit(client: str, cite: str, found: str) -> Finding:
    """The keys are not modules, or not exactly one of them is a list of modules; `found` says which."""
    needed = "keys that are modules, one of them the list of layers"
    return _no_stages(client, cite, because=f"the plan has {found}", found=found, needed=needed, fault=Fault.PLAN)


def _no_stages(client: str, cite: str, *, because: str, found: str, needed: str, fault: Fault) -> Finding:
    return Finding(
        "BE431",
        Severity.ERROR,
        f"{client} makes no stages of this model: {because}.",
        why=f"stages are cut by the plan's keys ({cite})",
        found=found,
        needed=needed,
        fault=fault,
    )
