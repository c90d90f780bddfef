"""The guards of the proof: every place in its code that refuses a plan, found in the syntax trees, and the code without it.

A guard is a condition whose branch refuses (returns, raises, yields or appends a fault or a finding), one alternative of `a or b`
that gives a fault, a comprehension of faults, or a refusal without a condition of its own. Taken out, the condition is false, the
alternative gives nothing, and a refusal lets the op pass: its result then lies as its shape on a rank says.
"""

import ast
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = """planner/judge.py planner/propagation planner/tracing planner/twins/loading.py planner/weights verify/proof""".split()
FAULTS = frozenset(
    """Problem Stuck GradientFault Unreachable Untraced Strided WrittenOutput NoLookup Misplaced RankFails IndivisibleError
    UnloadableError HookError MixedError PartError TraceError LoadingTrial Finding""".split()
)
REASONS = "expert_dispatch.py"
"""The file in which a refusal is a reason in words."""
ELSEWHERE = ("planner/propagation/rules", "compare_plans.py", "fixes.py", "degrees.py", "pipeline_names.py")
"""Files without refusals of the proof: rules have tests of their own, the others compare or mend plans."""


@dataclass(frozen=True, slots=True)
class Guard:
    """One place that refuses."""

    file: str
    line: int
    kind: str
    text: str

    @property
    def module(self) -> str:
        """The name by which the file is imported."""
        return "shardproof." + self.file.removesuffix(".py").replace("/", ".")

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.kind}: {self.text}"


@dataclass(frozen=True)
class GuardedFile:
    """A file with its guards, in the order of the code."""

    path: Path

    @cached_property
    def name(self) -> str:
        """The path from the repository's root."""
        return str(self.path.relative_to(ROOT))

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.path.read_text())

    @cached_property
    def refusing(self) -> frozenset[str]:
        """Functions of the file that give nothing but faults, or a fault or None."""
        found = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef) and node.returns is not None:
                found[node.name] = ast.unparse(node.returns)
        faults = ["Problem", "Stuck", "Finding", "RankFails", "TraceError", "Problem | None"]
        faults += ["str | None"] if self.path.name == REASONS else []
        return frozenset(name for name, gives in found.items() if gives in faults)

    def refusal(self, node: ast.AST | None) -> bool:
        """Whether an expression makes a fault or a finding at once."""
        if isinstance(node, ast.Tuple | ast.List):
            return any(self.refusal(one) for one in node.elts)
        if not isinstance(node, ast.Call):
            return False
        if isinstance(node.func, ast.Name):
            return node.func.id in FAULTS | self.refusing
        if isinstance(node.func, ast.Attribute) and node.func.attr == "append":
            return any(self.refusal(arg) or _is(arg, "problem") for arg in node.args)
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        return isinstance(owner, ast.Name) and owner.id[:2] in ("tp", "pp", "pl") and owner.id[2:].isdigit()

    def refuses(self, node: ast.stmt) -> bool:
        """Whether a statement refuses."""
        match node:
            case ast.Return(ast.Constant(str()) | ast.JoinedStr()):
                return self.path.name == REASONS
            case ast.Return(value) | ast.Expr(ast.Yield(value)) | ast.Expr(value) | ast.Assign(value=value):
                return self.refusal(value)
            case ast.AugAssign(value=value):
                return self.refusal(value)
            case ast.Raise():
                return node.exc is not None and (self.refusal(node.exc) or _is(node.exc, "found"))
        return False

    @property
    def places(self) -> Iterator[tuple[ast.AST, str]]:
        """The nodes of the tree that are guards, with their kind."""
        inside: set[int] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.If) and any(map(self.refuses, node.body)) and not self._helper(node):
                inside.update(id(one) for one in node.body)
                yield node, "condition"
        for node in ast.walk(self.tree):
            if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
                yield from ((value, "alternative") for value in node.values if self.refusal(value))
            elif isinstance(node, ast.GeneratorExp | ast.ListComp) and self.refusal(node.elt):
                yield node, "comprehension"
            elif (
                isinstance(node, ast.stmt) and self.refuses(node) and id(node) not in inside and not self._helper(node)
            ):
                yield node, "refusal"

    def _helper(self, node: ast.AST) -> bool:
        """Whether a statement is in a function that only puts a fault together: its callers are the guards."""
        around = (f for f in ast.walk(self.tree) if isinstance(f, ast.FunctionDef) and f.name in self.refusing)
        helpers = (f for f in around if f.returns is not None and "None" not in ast.unparse(f.returns))
        return any(node in ast.walk(helper) for helper in helpers)

    def around(self, node: ast.AST) -> ast.FunctionDef | None:
        """The innermost function that a node is in."""
        functions = (f for f in ast.walk(self.tree) if isinstance(f, ast.FunctionDef) and node in ast.walk(f))
        return max(functions, key=lambda function: function.lineno, default=None)

    @property
    def guards(self) -> list[Guard]:
        """All guards of the file."""
        lines = self.path.read_text().splitlines()
        return [
            Guard(self.name, node.lineno, kind, lines[node.lineno - 1].strip())  # type: ignore[attr-defined]
            for node, kind in self.places
        ]

    def without(self, at: int) -> str:
        """The code without one guard, by its place in `guards`."""
        tree = deepcopy(self.tree)
        copy = GuardedFile(self.path)
        vars(copy)["tree"] = tree
        node, kind = list(copy.places)[at]
        _Without(node, kind, copy.around(node)).visit(tree)
        return ast.unparse(ast.fix_missing_locations(tree))


class _Without(ast.NodeTransformer):
    """Takes one guard out."""

    def __init__(self, node: ast.AST, kind: str, function: ast.FunctionDef | None) -> None:
        self.node, self.kind, self.function = node, kind, function

    def visit(self, node: ast.AST) -> ast.AST:
        if node is not self.node:
            return self.generic_visit(node)
        if isinstance(node, ast.If):
            node.test = ast.BoolOp(ast.And(), [ast.Constant(False), node.test])
            return node
        if isinstance(node, ast.GeneratorExp | ast.ListComp):
            return ast.List([], ast.Load())
        if self.kind == "alternative":
            return ast.Constant(None)
        return _passing(node, self.function)


def _passing(node: ast.AST, function: ast.FunctionDef | None) -> ast.AST:
    """A statement in place of one that refuses: the op passes, and its result lies as its first input, or is whole."""
    if not isinstance(node, ast.Return):
        return ast.Pass()
    arguments = [arg.arg for arg in function.args.args] if function is not None else []
    gives = ast.unparse(function.returns) if function is not None and function.returns is not None else ""
    code = "()"
    if "None" in gives:
        code = "None"
    elif "Placements" in gives and "placements" in arguments:
        code = "placements[:1] * len(whole.results)" if "whole" in arguments else "placements[:1]"
    elif "Placements" in gives:
        code = "(placement,)" if "placement" in arguments else "(R,)"
    elif "LoadingTrial" in gives:
        code = "LoadingTrial()"
    elif isinstance(node.value, ast.Tuple) and any(isinstance(one, ast.Tuple) for one in node.value.elts):
        code = ", ".join("()" if isinstance(one, ast.Tuple) else ast.unparse(one) for one in node.value.elts)
    return ast.Return(ast.parse(code, mode="eval").body)


def _is(node: ast.AST, name: str) -> bool:
    """Whether an expression is this variable, or made of it at once."""
    if isinstance(node, ast.Call):
        return any(_is(arg, name) for arg in node.args)
    return isinstance(node, ast.Name) and node.id == name


def guarded_files() -> list[GuardedFile]:
    """All files with guards."""
    paths = [
        path for name in FILES for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
    ]
    kept = [path for path in sorted(paths) if not any(part in str(path) for part in ELSEWHERE)]
    return [file for file in map(GuardedFile, kept) if file.guards]
