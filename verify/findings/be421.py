"""BE421: a config.json that does not say what the model is."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity, Source
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE421",
        name="config-json-incomplete",
        severity=Severity.ERROR,
        what="The config.json of a checkpoint lacks `model_type` or `architectures`, or cannot be read; or `AutoModel` knows "
        "no model of its class; or a config inside of it is not in `sub_configs`.",
        why="An engine finds the classes by these fields alone, and makes the base model by `AutoModel`.",
        use_instead="Both fields, as `save_pretrained` writes them.",
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
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


_FILE = Place(source=Source("config.json", 1))


def unreadable(error: str) -> Finding:
    """`config.json` cannot be read; `error` is the name of the exception."""
    return _incomplete(f"config.json cannot be read ({error})", "a config.json")


def no_object() -> Finding:
    """`config.json` holds something else than an object."""
    return _incomplete("config.json holds no object", "one JSON object")


def lacks(field: str, needed: str) -> Finding:
    """`config.json` has no such field."""
    return _incomplete(f"config.json has no {field}", needed)


def no_base_model(config: str, place: Place, client: str) -> Finding:
    """A config of Transformers' own, of this class, that `AutoModel` has no model for."""
    return Finding(
        "BE421",
        Severity.ERROR,
        f"AutoModel knows no model of {config}, so that {client} cannot make it.",
        place,
        why="an engine makes the base model by AutoModel.from_config(config)",
        found=f"{config} is not in MODEL_MAPPING",
        needed="the config of a whole model that AutoModel knows",
        fault=Fault.MODEL,
    )


def part_not_declared(config: str, part: str, place: Place) -> Finding:
    """A config, of this class, holds another config (`part`) that its `sub_configs` does not name."""
    return Finding(
        "BE421",
        Severity.ERROR,
        f"{config} holds the config {part}, and its sub_configs does not name it.",
        place,
        why="the attention, the dtype and the plan of a part are set through sub_configs",
        found=f"no {part} in sub_configs",
        needed=f'sub_configs = {{"{part}": ...}} on the config class',
        fault=Fault.MODEL,
    )


def _incomplete(problem: str, needed: str) -> Finding:
    return Finding(
        "BE421",
        Severity.ERROR,
        f"{problem}.",
        _FILE,
        why="an engine finds the classes by this file alone",
        found=problem,
        needed=needed,
        fault=Fault.MODEL,
    )
