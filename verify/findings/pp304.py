"""PP304: layers that no stage runs."""

from collections.abc import Sequence

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="PP304",
        name="layer-dropped",
        severity=Severity.ERROR,
        what="Over all stages, a layer runs no time, or more than once.",
        why="The stages together must be the model: f = f_p(...f_2(f_1(x))). A split that is off by one "
        "drops a layer or repeats it, and the output still looks like text.",
        use_instead="A split whose stages cover the layers once: with L layers on p stages, cuts at increasing "
        "numbers from 0 to L.",
        fix_safety="No edit is offered: the split is the engine's, or follows from the config.",
        invalid=(Example(note="Layer 8 is on no stage.", code="stages = [range(0, 8), range(9, 16)]"),),
        valid=(Example(note="Every layer once.", code="stages = [range(0, 8), range(8, 16)]"),),
    )
)


def names_one_layer(key: str) -> Finding:
    """A key that names one member of the list of layers."""
    stack = key.rpartition(".")[0]
    return Finding(
        "PP304",
        Severity.ERROR,
        f'"{key}" is one of the layers, and a key names all of them',
        Place(entry=key, module=stack),
        why="layers are dealt out to the stages from their list",
        found=key,
        needed=stack,
    )


def same_layer_twice(stack: str, first: int, second: int) -> Finding:
    """Two places of the list of layers hold one module."""
    return Finding(
        "PP304",
        Severity.ERROR,
        f'"{stack}.{first}" and "{stack}.{second}" are one module, which cannot be on one stage alone',
        Place(entry=stack, module=stack),
        why="the stages together must be the model, with every layer once",
        found="a module that stands twice in the list of layers",
        needed="a module for each place",
        fault=Fault.MODEL,
    )


def named_twice(first: str, second: str) -> Finding:
    """Two keys that name one module, or a module and what lies inside it."""
    return Finding(
        "PP304",
        Severity.ERROR,
        f'"{first}" and "{second}" name the same module, which would run twice',
        Place(entry=second, module=second),
        why="the stages together must be the model, with every module once",
        found=f"{first}, {second}",
        needed="one of them",
    )


def no_list_of_layers() -> Finding:
    """No key names a `ModuleList`."""
    return Finding(
        "PP304",
        Severity.UNDECIDED,
        "the pipeline plan names no list of layers",
        why="stages are cut from a list of layers",
        found="none",
        needed="the ModuleList that holds the layers",
    )


def not_covered(path: str) -> Finding:
    """A module with parameters that the hidden states run through and no key names."""
    return Finding(
        "PP304",
        Severity.ERROR,
        f'no key of the pipeline plan covers "{path}", through which the hidden states run',
        Place(entry=path, module=path),
        why="a module outside the plan runs on no stage, or on every one",
        found="no key",
        needed=f'"{path}" at its place in the plan',
    )


def layer_not_once(layer: int, times: int, *, chunks: Sequence[range], depth: int) -> Finding:
    """A layer is on no stage, or on several; `chunks` are the layers of each stage, of `depth` in all."""
    what = "is on no stage" if times == 0 else f"is on {times} stages"
    return Finding(
        "PP304",
        Severity.ERROR,
        f"layer {layer} {what}",
        why="the stages together must be the model, with every layer once",
        found=", ".join(f"{one.start} to {one.stop - 1}" for one in chunks),
        needed=f"layers 0 to {depth - 1}, each on one stage",
    )
