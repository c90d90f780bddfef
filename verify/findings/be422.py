"""BE422: custom code that no engine can find."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE422",
        name="auto-map-incomplete",
        severity=Severity.ERROR,
        what="The `auto_map` of a custom model lacks a class that engines ask for, or names a file or class "
        "that is not there.",
        why="Engines build the base model by `AutoModel`; `AutoModelForCausalLM` alone loads in Transformers,"
        " and nowhere else.",
        use_instead="`AutoConfig`, `AutoModel` and `AutoModelForCausalLM`, each a file beside config.json and a class"
        " in it.",
        fix_safety="No edit is offered: an edit is of a plan, and here it is the model's own files that change.",
        invalid=(
            Example(
                note="There is no AutoModel, and no such file.",
                code="""\
{"model_type": "mine", "architectures": ["Mine"], "auto_map": {"AutoConfig": "mine.MyConfig"}}
""",
            ),
        ),
        valid=(
            Example(
                note="A type of Transformers' own needs none.",
                code="""\
{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
""",
            ),
        ),
    )
)
