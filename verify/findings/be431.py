"""BE431: a model that the client cannot cut into stages."""

from shardproof.planner.ir.findings import Severity
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
        fix_safety="No edit is offered: an edit is of a tensor-parallel entry.",
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
