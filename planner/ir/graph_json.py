"""A graph as JSON, and JSON read back to an equal graph."""

from collections.abc import Mapping
from typing import Any

from shardproof.planner.ir.findings import Source
from shardproof.planner.ir.graph import Arg, Graph, Module, ModuleCall, Op, Ref, Value


def graph_to_json(graph: Graph) -> dict[str, Any]:
    """A JSON object; `graph_from_json` reads it back to an equal graph."""
    return {
        "modules": [
            {
                "path": m.path,
                "kind": m.kind,
                "parameters": dict(m.parameters),
                "numbers": dict(m.numbers),
                "bases": list(m.bases),
                "repeats": m.repeats,
                "buffers": dict(m.buffers),
                "automatic": m.automatic,
                "inner": m.inner,
            }
            for m in graph.modules
        ],
        "values": [[list(v.shape), v.dtype, v.name, v.content] for v in graph.values],
        "ops": [
            {
                "target": op.target,
                "args": [_pack(arg) for arg in op.args],
                "kwargs": {key: _pack(arg) for key, arg in op.kwargs},
                "outputs": list(op.outputs),
                "module": op.module,
                "source": [op.source.file, op.source.line] if op.source else None,
                "constant": op.constant,
            }
            for op in graph.ops
        ],
        "inputs": dict(graph.inputs),
        "outputs": [[name, number] for name, number in graph.outputs],
        "notes": list(graph.notes),
        "written": [list(one) for one in graph.written],
        "branches": [[one.file, one.line] for one in graph.branches],
        "calls": [_of_call(call) for call in graph.calls],
    }


def graph_from_json(data: Mapping[str, Any]) -> Graph:
    """Read what `graph_to_json` wrote."""
    return Graph(
        modules=tuple(
            Module(
                m["path"],
                m["kind"],
                tuple(m["parameters"].items()),
                tuple(m["numbers"].items()),
                tuple(m["bases"]),
                m["repeats"],
                tuple(m["buffers"].items()),
                m["automatic"],
                m["inner"],
            )
            for m in data["modules"]
        ),
        values=tuple(Value(tuple(shape), dtype, name, content) for shape, dtype, name, content in data["values"]),
        ops=tuple(
            Op(
                op["target"],
                tuple(map(_unpack, op["args"])),
                tuple((key, _unpack(arg)) for key, arg in op["kwargs"].items()),
                tuple(op["outputs"]),
                op["module"],
                Source(*op["source"]) if op["source"] else None,
                op["constant"],
            )
            for op in data["ops"]
        ),
        inputs=tuple(data["inputs"].items()),
        outputs=tuple((name, number) for name, number in data["outputs"]),
        notes=tuple(data["notes"]),
        written=tuple((position, path) for position, path in data["written"]),
        branches=tuple(Source(file, line) for file, line in data["branches"]),
        calls=tuple(_call(*call) for call in data["calls"]),
    )


def _of_call(call: ModuleCall) -> list[Any]:
    return [call.module, [list(a) for a in call.arguments], list(call.outputs), list(call.ran)]


def _call(module: str, given: list[tuple[str, int]], made: list[int], ran: list[int]) -> ModuleCall:
    return ModuleCall(module, tuple((name, number) for name, number in given), tuple(made), (ran[0], ran[1]))


def _pack(arg: Arg) -> Any:
    match arg:
        case Ref(number):
            return {"value": number}
        case tuple():
            return [_pack(item) for item in arg]
        case float() if arg != arg or arg in (float("inf"), float("-inf")):
            return {"float": repr(arg)}
        case _:
            return arg


def _unpack(data: Any) -> Arg:
    match data:
        case {"value": number}:
            return Ref(number)
        case {"float": text}:
            return float(text)
        case list():
            return tuple(map(_unpack, data))
        case _:
            return data  # type: ignore[no-any-return]
