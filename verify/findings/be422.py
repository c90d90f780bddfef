"""BE422: custom code that no engine can find."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity, Source
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
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
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


def no_auto_map(model_type: object) -> Finding:
    """Transformers has no such model type, and `config.json` names no classes."""
    problem = f"Transformers has no type {model_type!r}, and there is no auto_map"
    return _incomplete(problem, '"auto_map": {"AutoConfig": ..., "AutoModel": ..., "AutoModelForCausalLM": ...}')


def auto_map_lacks(key: str) -> Finding:
    """`auto_map` has no entry for an auto class that engines use."""
    return _incomplete(f"auto_map has no {key}, by which engines make the base model", f'"{key}": "file.Class"')


def auto_map_names(key: str, reference: str, problem: str) -> Finding:
    """`auto_map` names a file or a class that is not there."""
    return _incomplete(f"auto_map's {key} names {reference}, and {problem}", "a file and a class that are there")


def _incomplete(problem: str, needed: str) -> Finding:
    return Finding(
        "BE422",
        Severity.ERROR,
        f"{problem}.",
        Place(source=Source("config.json", 1)),
        why="an engine finds the classes by this file alone",
        found=problem,
        needed=needed,
        fault=Fault.MODEL,
    )
