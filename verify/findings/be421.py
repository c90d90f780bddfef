"""BE421: a config.json that does not say what the model is."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE421",
        name="config-json-incomplete",
        severity=Severity.ERROR,
        what="The config.json of a checkpoint lacks `model_type` or `architectures`, or cannot be read; or `AutoModel` knows "
        "no model of its class.",
        why="An engine finds the classes by these fields alone, and makes the base model by `AutoModel`.",
        use_instead="Both fields, as `save_pretrained` writes them.",
        fix_safety="No edit is offered: an edit is of a plan, and here it is the model's own files that change.",
        invalid=(
            Example(
                note="No architectures.",
                code="""\
{"model_type": "llama"}
""",
            ),
        ),
        valid=(
            Example(
                note="Both are there.",
                code="""\
{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
""",
            ),
        ),
    )
)
