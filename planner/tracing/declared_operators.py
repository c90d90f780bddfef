"""Operators that a user declares: an equation of dims, held against a reference that is run on small numbers.

What the equation says is which dims are one. Whether a rank's part of a dim gives the rank's part of the result is not said but
tried: the reference is run on parts, and a dim along which it mixes is locked.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import gcd
from re import fullmatch
from typing import Any, TypeAlias

import torch
from torch import Tensor

from shardproof.planner.ir.errors import ArgumentError, reason
from shardproof.planner.ir.graph import Arg, Ref, Shape
from shardproof.planner.propagation.rules.registry import ASSUMED, RULES, rule_of
from shardproof.planner.propagation.semantics import Call, Einsum, Letters

Reference: TypeAlias = Callable[..., Any]

SMALL = 6
"""The size of a dim in a trial: it divides by two and by three ranks."""
TOLERANCE = 1e-5
"""Of the largest number of a result, in a trial: a reference may compute in float32, and what mixes differs by about 1."""
_SEEDS = (0, 1)
_MOST_GROUPED = 64
"""At most so many times larger may a dim be in one operand than in another."""


@dataclass(frozen=True, slots=True)
class Equation:
    """The dims of the tensors that an operator takes and gives; None is a dim without a counterpart."""

    inputs: tuple[Letters, ...]
    outputs: tuple[Letters, ...]


@dataclass(slots=True)
class Declared:
    """One declared operator, and what was found of it by trial, by the form of the call."""

    name: str
    equation: Equation
    reference: Reference
    sizes: Mapping[str, int]
    runs_here: bool
    """Whether the operator itself has a kernel for the CPU."""
    tried: dict[object, Einsum] = field(default_factory=dict)

    def __call__(self, call: Call) -> Einsum:
        """What a call of the operator does to dims.

        Raises:
            ArgumentError: the call has other tensors than the equation, or the reference raises or computes something else.
        """
        key = (call.shapes, call.results, _plain(call.op.args), _plain(call.op.kwargs))
        if key not in self.tried:
            self.tried[key] = _ReferenceTrial(self, call).meaning()
        return self.tried[key]


def register(name: str, equation: str, reference: Reference, *, sizes: Mapping[str, int] | None = None) -> None:
    """Declare what an operator of torch does to the dims of its tensors, so that a plan with it can be proved.

    Call it where the operator is imported, such as in the model's own file, so that ranks call it too. Where the operator has no
    kernel for the CPU or for the meta device, the reference is its kernel there.

    Args:
        name: the operator as torch names it, `package::operator`.
        equation: the dims of each tensor that it takes and gives, `"b t h d, h d -> b t h d"`. Dims of one name are one dim; a
            name that the result lacks is summed over; `_` is a dim that belongs to no other.
        reference: a function of plain torch code with the operator's arguments and result. It is run on small random numbers in
            float64, whole and in parts.
        sizes: of dims, in these trials, where the reference does not take 6.

    Raises:
        ArgumentError: torch has no such operator, it has a rule already, or the equation cannot be read.
    """
    if fullmatch(r"\w+::\w+", name) is None:
        raise ArgumentError(f"{name!r} names no operator: give it as package::operator.")
    target = name.replace("::", ".")
    if not torch._C._jit_get_schemas_for_operator(name):
        raise ArgumentError(f"torch has no operator {name}: import the package that defines it first.")
    if not isinstance(RULES.get(rule_of(target) or "", None), Declared | None):
        raise ArgumentError(f"{name} has a rule already: declare operators of other packages than torch.")
    declared, known = read_equation(equation), RULES.get(target)
    _check_sizes(sizes or {}, declared)
    runs_here = known.runs_here if isinstance(known, Declared) else _runs_on_cpu(name)
    RULES[target] = Declared(name, declared, reference, dict(sizes or {}), runs_here)
    if known is None:
        _fill_in(name, target, runs_here)
    if not runs_here:
        ASSUMED[target] = f"{name}, which has no kernel for the CPU, computes what its reference computes"


def _check_sizes(sizes: Mapping[str, int], equation: Equation) -> None:
    names = {dim for tensor in equation.inputs for dim in tensor if dim is not None}
    for dim, size in sizes.items():
        if dim not in names:
            raise ArgumentError(f"sizes names {dim!r}, which is no dim of what the operator takes.")
        if type(size) is not int or size < 2:
            raise ArgumentError(f"sizes gives {dim} {size!r}, and a dim is tried in parts: give 2 or more.")


def _fill_in(name: str, target: str, runs_here: bool) -> None:
    """Make the reference the kernel of an operator where it has none."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        declared = RULES[target]
        assert isinstance(declared, Declared)
        return declared.reference(*args, **kwargs)

    if not runs_here:
        torch.library.register_kernel(name, "cpu", kernel)
    if not (_has_kernel(name, "Meta") or _has_fake(name)):
        torch.library.register_fake(name, kernel)


def _has_kernel(name: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))


def _runs_on_cpu(name: str) -> bool:
    return any(_has_kernel(name, key) for key in ("CPU", "CompositeExplicitAutograd", "CompositeImplicitAutograd"))


def _has_fake(name: str) -> bool:
    return torch._library.simple_registry.singleton.find(name).fake_impl.kernel is not None


def read_equation(text: str) -> Equation:
    """An equation of dims, as `register` takes it.

    Raises:
        ArgumentError: it has another form, or names a dim twice in one tensor.
    """
    given, arrow, made = text.partition("->")
    if not arrow or "->" in made:
        raise ArgumentError(f"the equation {text!r} has no `->` between what an operator takes and what it gives.")
    sides = [tuple(tuple(tensor.split()) for tensor in side.split(",")) for side in (given, made)]
    for tensor in (*sides[0], *sides[1]):
        named = [dim for dim in tensor if dim != "_"]
        if odd := next((dim for dim in named if not dim.isidentifier()), None):
            raise ArgumentError(f"the equation {text!r} has {odd!r} where the name of a dim is expected.")
        if len(named) != len(set(named)):
            raise ArgumentError(f"the equation {text!r} names a dim twice in one tensor.")
    inputs, outputs = (tuple(tuple(None if dim == "_" else dim for dim in one) for one in side) for side in sides)
    return Equation(inputs, outputs)


def _plain(arg: object) -> object:
    """An argument by which calls are told apart: tensors are all alike."""
    if isinstance(arg, tuple):
        return tuple(_plain(item) for item in arg)
    return "tensor" if isinstance(arg, Ref) else arg


@dataclass(frozen=True, slots=True)
class _ReferenceTrial:
    """The reference of a declared operator, run as one call of it is, on small tensors."""

    declared: Declared
    call: Call

    def meaning(self) -> Einsum:
        """The equation, with every dim locked along which the reference mixes."""
        equation = self.declared.equation
        self._same_form("takes", equation.inputs, self.call.shapes)
        self._same_form("gives", equation.outputs, self.call.results)
        runs = [self._whole(seed) for seed in _SEEDS]
        if self.declared.runs_here:
            self._same_as_the_operator(*runs[0])
        names = dict.fromkeys(dim for tensor in equation.inputs for dim in tensor if dim is not None)
        kept = {dim: self._kept_apart(dim, runs) for dim in names}
        return Einsum(
            equation.inputs,
            equation.outputs,
            frozenset(dim for dim, apart in kept.items() if not apart),
            self._linear(runs),
            why_locked="on a part of this dim its reference computes something else",
            near=None in kept.values(),
        )

    def _same_form(self, verb: str, letters: tuple[Letters, ...], shapes: tuple[Shape, ...]) -> None:
        if [len(one) for one in letters] != [len(shape) for shape in shapes]:
            shown = ", ".join(str(list(shape)) for shape in shapes)
            raise ArgumentError(f"{self.declared.name} {verb} {shown} here, which is not what its equation says.")

    def _ratio(self, dim: str) -> dict[int, int]:
        """How many times larger a dim is in each operand that has it, than what they have in common."""
        here = {
            index: self.call.shapes[index][letters.index(dim)]
            for index, letters in enumerate(self.declared.equation.inputs)
            if dim in letters
        }
        common = gcd(*here.values()) or 1
        if max(here.values()) > _MOST_GROUPED * common:
            sizes = " and ".join(map(str, dict.fromkeys(here.values())))
            raise ArgumentError(
                f"{self.declared.name} is given sizes {sizes} of {dim}, which its equation says is one dim."
            )
        return {index: size // common for index, size in here.items()}

    def _size(self, dim: str) -> int:
        return self.declared.sizes.get(dim, SMALL)

    def _whole(self, seed: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Operands, and what the reference makes of them."""
        made = torch.Generator().manual_seed(seed)
        drawn: list[tuple[Tensor, ...]] = []
        for positive in (False, True):
            drawn.append(tuple(self._operand(index, made, positive) for index in range(len(self.call.shapes))))
            results = self._run(drawn[-1])
            if all(bool(torch.isfinite(one).all()) for one in results):
                return drawn[-1], results
        raise ArgumentError(
            f"the reference of {self.declared.name} gives numbers that are not finite, on numbers from 0.1 to 1."
        )

    def _operand(self, index: int, made: torch.Generator, positive: bool) -> Tensor:
        letters, shape = self.declared.equation.inputs[index], self.call.shapes[index]
        sizes = [
            size if dim is None else self._size(dim) * self._ratio(dim)[index]
            for dim, size in zip(letters, shape, strict=True)
        ]
        dtype = self.call.graph.values[self.call.inputs[index]].dtype
        if dtype == "bool" or "int" in dtype:
            return torch.randint(0, 2, sizes, generator=made).to(getattr(torch, dtype))
        kind = torch.complex128 if "complex" in dtype else torch.float64
        if positive:
            return torch.rand(sizes, generator=made, dtype=kind) * 0.9 + 0.1
        return torch.randn(sizes, generator=made, dtype=kind)

    def _run(self, operands: tuple[Tensor, ...], function: Reference | None = None) -> tuple[Tensor, ...]:
        given = iter(operands)
        args = tuple(_argument(arg, given) for arg in self.call.op.args)
        kwargs = {name: _argument(arg, given) for name, arg in self.call.op.kwargs}
        try:
            with torch.no_grad():
                made = (function or self.declared.reference)(*args, **kwargs)
        except Exception as error:  # the user's own code
            raise ArgumentError(f"the reference of {self.declared.name} raised {reason(error)}.") from error
        results = (made,) if isinstance(made, Tensor) else tuple(one for one in made if isinstance(one, Tensor))
        self._same_form("gives", self.declared.equation.outputs, tuple(tuple(one.shape) for one in results))
        return results

    def _same_as_the_operator(self, operands: tuple[Tensor, ...], results: tuple[Tensor, ...]) -> None:
        """The operator itself computes on the CPU what its reference does."""
        package, _, operator = self.declared.name.partition("::")
        itself = getattr(getattr(torch.ops, package), operator)
        single = tuple(one.float() if one.dtype == torch.float64 else one for one in operands)
        for one, other in zip(self._run(single, itself), results, strict=True):
            if not _near(one, other, 1e-3):
                raise ArgumentError(
                    f"the reference of {self.declared.name} computes something else than the operator itself."
                )

    def _kept_apart(self, dim: str, runs: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]) -> bool | None:
        """Whether parts of a dim give parts of the result, or their sum; None where only parts of equal size do, or none can be
        tried.
        """
        size = self._size(dim)
        even = [(size // degree,) * degree for degree in (2, 3) if size % degree == 0]
        tried = [self._parts_fit(dim, parts, *run) for parts in even for run in runs]
        if not tried or None in tried:
            return None
        if not all(tried):
            return False
        return all(self._parts_fit(dim, (size - 1, 1), *run) for run in runs) or None

    def _parts_fit(
        self, dim: str, parts: tuple[int, ...], operands: tuple[Tensor, ...], results: tuple[Tensor, ...]
    ) -> bool | None:
        """Whether the results on these parts are those of the whole; None where the reference does not take them."""
        try:
            made = [self._run(part) for part in self._split(dim, parts, operands)]
        except ArgumentError:  # it may want sizes that a small part has not
            return None
        outputs = self.declared.equation.outputs
        summed = all(dim not in letters for letters in outputs)
        return all(
            _joined(letters.index(dim) if dim in letters else None, [one[index] for one in made], whole, summed)
            for index, (letters, whole) in enumerate(zip(outputs, results, strict=True))
        )

    def _split(self, dim: str, parts: tuple[int, ...], operands: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
        ratio, inputs = self._ratio(dim), self.declared.equation.inputs
        for start, stop in pairwise(accumulate(parts, initial=0)):
            yield tuple(
                one.narrow(inputs[index].index(dim), start * ratio[index], (stop - start) * ratio[index])
                if index in ratio
                else one
                for index, one in enumerate(operands)
            )

    def _linear(self, runs: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]) -> tuple[frozenset[int], ...]:
        """Each operand alone, and all of them, if the reference of a sum is the sum of its results."""
        (first, made), (second, _) = runs
        floats = [index for index, one in enumerate(first) if one.is_floating_point() or one.is_complex()]
        sets = dict.fromkeys([*(frozenset({index}) for index in floats), frozenset(floats)])
        found = []
        for partial in sets:
            other = tuple(second[i] if i in partial else one for i, one in enumerate(first))
            summed = tuple(first[i] + second[i] if i in partial else one for i, one in enumerate(first))
            rest, whole = self._run(other), self._run(summed)
            if partial and all(_near(a + b, c, TOLERANCE) for a, b, c in zip(made, rest, whole, strict=True)):
                found.append(partial)
        return tuple(found)


def _joined(dim: int | None, parts: list[Tensor], whole: Tensor, summed: bool) -> bool:
    """Whether the results of the ranks are the parts of a whole along `dim`, or without one its addends, or each all of it."""
    if dim is not None:
        return _near(torch.cat(parts, dim), whole, TOLERANCE)
    if any(one.shape != whole.shape for one in parts):
        return False
    return (
        _near(sum(parts[1:], parts[0]), whole, TOLERANCE)
        if summed
        else all(_near(one, whole, TOLERANCE) for one in parts)
    )


def _near(one: Tensor, other: Tensor, tolerance: float) -> bool:
    if one.shape != other.shape:
        return False
    if not (one.is_floating_point() or one.is_complex()):
        return bool(torch.equal(one, other))
    scale = float(other.abs().max()) if other.numel() else 0.0
    return bool(((one - other).abs() <= tolerance * max(scale, 1e-30)).all())


def _argument(arg: Arg, tensors: Iterator[Tensor]) -> Any:
    """An argument of the reference: tensors in order, and the rest as the call had it."""
    if isinstance(arg, Ref):
        return next(tensors)
    if isinstance(arg, tuple):
        return [_argument(item, tensors) for item in arg]
    if isinstance(arg, str) and arg.startswith("torch.") and hasattr(torch, arg.removeprefix("torch.")):
        return getattr(torch, arg.removeprefix("torch."))
    return "cpu" if arg == "meta" else arg
