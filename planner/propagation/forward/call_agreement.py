"""Do the two calls of one op agree in their arguments, dtypes and shapes?"""

from shardproof.planner.ir.graph import Arg, Op, Ref
from shardproof.planner.propagation.forward.relation import Placements, Problem, local_shape_or_none, name
from shardproof.planner.propagation.semantics import Call


def shapes_agree(whole: Call, local: Call, placements: Placements, degree: int) -> Problem | None:
    """The shapes of a rank's results are what their placements make of the global shapes."""
    for shape, part, placement in zip(whole.results, local.results, placements, strict=True):
        needed = local_shape_or_none(shape, placement, degree)
        if needed != part:
            return Problem(
                "TP202",
                f"{name(whole)} makes {list(part)} on a rank",
                "a size of the whole model is written into the code, so a rank's part is folded into another shape",
                str(list(part)),
                f"{list(needed) if needed else 'an even part'} ({placement} of {list(shape)})",
            )
    return None


def arguments_agree(whole: Call, local: Call) -> Problem | None:
    """The arguments that are no tensors, by position and by keyword, are alike in both programs, sizes of results aside."""
    ours, theirs = (_beside_shapes(op) for op in (whole.op, local.op))
    if len(ours) != len(theirs):
        return _other_constant(whole, f"{len(theirs)} plain arguments", f"{len(ours)}")
    for (key, wanted), (_, got) in zip(ours, theirs, strict=True):
        if not _alike(wanted, got):
            return _other_constant(
                whole, f"{key}={got}" if key else str(got), f"{key}={wanted}" if key else str(wanted)
            )
    return None


def _other_constant(whole: Call, got: str, wanted: str) -> Problem:
    return Problem(
        "TP209", f"{name(whole)} uses {got} on a rank", "a constant was taken from a local size", got, wanted
    )


def _alike(one: Arg, other: Arg) -> bool:
    """Whether two plain arguments are one; NaN is itself here."""
    return one == other or (one != one and other != other)


def dtypes_agree(whole: Call, local: Call) -> Problem | None:
    """The results have one dtype in both programs."""
    for ours, theirs in zip(whole.op.outputs, local.op.outputs, strict=True):
        wanted, got = whole.graph.values[ours].dtype, local.graph.values[theirs].dtype
        if wanted != got:
            return _other_constant(whole, got, wanted)
    return None


def _beside_shapes(op: Op) -> list[tuple[str, Arg]]:
    """The plain arguments that shapes do not tell, each with its keyword, if it was given by one."""
    positional = op.args
    match op.target:
        case "aten.convolution":  # how many groups it has follows from its shapes: torch refuses any other number
            positional = op.args[:8]
        case "aten.full" | "aten.new_full":
            positional = op.args[-1:]
        case "aten.slice":  # where a slice without a step begins is compared with its placement
            step = op.arg(4, "step") or 1
            positional = (step, None if step == 1 else op.arg(2, "start"))
        case target if any(part in target for part in _SIZES_FREE):
            positional = ()
    given = [("", arg) for arg in _plain(positional)]
    return given + [(key, arg) for key, value in op.kwargs if key not in _SIZE_KEYWORDS for arg in _plain((value,))]


def _plain(args: tuple[Arg, ...]) -> list[Arg]:
    found: list[Arg] = []
    for arg in args:
        if isinstance(arg, tuple):
            found += _plain(arg)
        elif not isinstance(arg, Ref):
            found.append(arg)
    return found


_SIZES_FREE = ("view", "reshape", "expand", "zeros", "ones", "empty", "split", "slice", "repeat")


_SIZE_KEYWORDS = ("size", "sizes", "shape", "repeats", "split_size", "split_size_or_sections", "end", "start")
"""Keywords whose numbers are sizes, which the shapes of the results tell."""
