"""Why a module stays whole."""

from shardproof.planner.inference.candidates import inner_leaves
from shardproof.planner.inference.groups import Groups
from shardproof.planner.ir.graph import Module
from shardproof.planner.ir.plan import generic, join


def locked(groups: Groups, module: Module) -> str:
    """What forbids splitting a module's parameters."""
    if all(generic(join(module.path, name)) not in groups.graph.used_parameters for name, _ in module.parameters):
        return "it took part in no traced op: nothing is known of it"
    for _, number in module.parameters:
        for dim in groups.dims.get(number, ()):
            for atom in inner_leaves(dim):
                if atom.locks:
                    lock = next(iter(atom.locks))
                    where = f" ({groups.graph.ops[lock.position].source})" if lock.position >= 0 else ""
                    return f"{lock.why}{where}"
    return "too small for a collective of its own"
