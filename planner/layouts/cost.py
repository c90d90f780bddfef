"""The memory and the traffic of one rank under a layout: exact bytes and counts, estimated activations and seconds. No
torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from math import prod

from shardproof.planner.ir.placement import Placement, Shard, local_shape
from shardproof.planner.propagation.collectives import Kind


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: its shape, its placement, and the units that use it (0 is before the layers, 1.. the layers, the last
    after).

    `active` is the share of it that one token uses: an expert that does not receive the token takes memory but is not read.
    In the units of `looked_up` rows of it are looked up, without a matrix product. It is `trained` if a gradient reaches it.

    `width` are the bytes of an element where the checkpoint stores it quantised, with its share of the scales.

    A table that is sharded along its rows and only looked up has a whole gradient on every rank (torch 2.13.0, distributed
    tensors: the backward of an embedding gives a replicated gradient).
    """

    shape: tuple[int, ...]
    placement: Placement
    units: frozenset[int]
    active: float = 1.0
    looked_up: frozenset[int] = frozenset()
    trained: bool = True
    only_looked_up: bool = False
    width: float | None = None

    def gradient(self, tp: int) -> int:
        """The number of elements of its gradient on the first rank."""
        rows = isinstance(self.placement, Shard) and self.placement.dim == 0
        return 0 if not self.trained else prod(self.shape) if self.only_looked_up and rows else self.elements(tp)

    def elements(self, tp: int) -> int:
        """The number of its elements on the first rank, whose part is the largest."""
        return prod(local_shape(self.shape, self.placement, tp))

    def stored(self, tp: int, load: "Load") -> int:
        """The bytes of its elements on the first rank; it is trained as it was before it was quantised."""
        width = load.width if self.width is None or load.train else self.width
        return round(self.elements(tp) * width)


class Per(Enum):
    """What the number of elements of a collective is proportional to."""

    TOKEN = auto()
    POSITION = auto()
    STEP = auto()


@dataclass(frozen=True, slots=True)
class Traffic:
    """One collective per forward (or backward) of a unit: its elements over all ranks for one token, plus `fixed` elements
    for each sequence (such as a pooled state or a learned prompt).

    The elements are per position if all sequences of a batch share them (a position table); `fixed` is then per step. They
    are per step if they do not depend on tokens (the all-reduce of a parameter's gradient). `width` is the size of the
    gathered dim (0: all elements of a token); if it does not divide, every part is padded to the largest. It is `estimated`
    if data decide which tokens take part.
    """

    kind: Kind
    unit: int
    elements: int
    backward: bool
    per: Per = Per.TOKEN
    fixed: int = 0
    width: int = 0
    estimated: bool = False

    def per_rank(self, tp: int) -> int:
        """Elements that a rank contributes per token: its part of an all-gather, all elements of an all-reduce; without
        `fixed`.
        """
        return self._part(self.elements, tp)

    def fixed_per_rank(self, tp: int) -> int:
        """The fixed elements that a rank contributes; they count as whole tokens if they are a multiple of a token's
        elements.
        """
        tokens, rest = divmod(self.fixed, self.elements) if self.elements else (0, self.fixed)
        return self._part(self.fixed, tp) if rest else tokens * self._part(self.elements, tp)

    def of(self, rows: int, length: int, *, tp: int) -> int:
        """Elements that a rank contributes for `rows` sequences of `length` tokens."""
        each, fixed = self.per_rank(tp), self.fixed_per_rank(tp)  # uneven parts are padded for every token
        match self.per:
            case Per.TOKEN:
                return rows * (length * each + fixed)
            case Per.POSITION:
                return length * each + fixed
            case Per.STEP:
                return each

    def _part(self, elements: int, tp: int) -> int:
        if self.kind is not Kind.ALL_GATHER:
            return elements
        width = self.width if self.width and elements % self.width == 0 else elements
        return elements // max(width, 1) * -(-width // tp)


@dataclass(frozen=True, slots=True)
class Handed:
    """One tensor that a stage sends to the next, the same on each tensor-parallel rank: its elements for one token (or
    position, or step), the bytes of an element if it is not a floating-point number, and whether its gradient is sent back.
    """

    elements: int
    width: int | None = None
    returned: bool = True
    per: Per = Per.TOKEN


@dataclass(frozen=True, slots=True)
class CachedTensor:
    """One tensor that a layer keeps between decoding steps, for one sequence on one device: its elements, the bytes of an
    element if its dtype is not the model's (such as float32 states), and whether it is sharded over the ranks.
    """

    elements: int
    width: int | None = None
    split: bool = True


@dataclass(frozen=True)
class Facts:
    """The facts of a model and its plan that costs need. Units: 0 is before the layers, `1..depth` the layers, `depth + 1`
    after.

    `cache` lists the tensors that each layer keeps between steps; None if unknown. `handed` lists the tensors that are sent
    at a cut before the second layer, the third, and so on. `unknown` is the method of a quantised checkpoint of which the
    stored bytes are not known; its weights count as they were before.
    """

    parameters: tuple[Parameter, ...]
    traffic: tuple[Traffic, ...]
    depth: int
    hidden: int
    cache: tuple[tuple[CachedTensor, ...], ...] | None
    handed: tuple[tuple[Handed, ...], ...] = ()
    unknown: str = ""

    @cached_property
    def _elements(self) -> dict[int, tuple[int, ...]]:
        return {}

    def elements(self, tp: int) -> tuple[int, ...]:
        """The number of elements of each parameter on one rank."""
        if tp not in self._elements:
            self._elements[tp] = tuple(one.elements(tp) for one in self.parameters)
        return self._elements[tp]

    @cached_property
    def _gradients(self) -> dict[int, tuple[int, ...]]:
        return {}

    def gradients(self, tp: int) -> tuple[int, ...]:
        """The number of elements of each parameter's gradient on one rank."""
        if tp not in self._gradients:
            self._gradients[tp] = tuple(one.gradient(tp) for one in self.parameters)
        return self._gradients[tp]

    @cached_property
    def _of_unit(self) -> tuple[frozenset[int], ...]:
        numbered = list(enumerate(self.parameters))
        return tuple(frozenset(at for at, one in numbered if unit in one.units) for unit in range(self.depth + 2))

    def used(self, units: Sequence[int]) -> frozenset[int]:
        """The indices of the parameters that these units use."""
        return frozenset().union(*(self._of_unit[unit] for unit in units))

    @cached_property
    def flops(self) -> tuple[float, ...]:
        """Floating-point operations for one token in each unit: two for every matrix element that the token uses."""
        found = [0.0] * (self.depth + 2)
        for parameter in self.parameters:
            if len(parameter.shape) > 1:
                for unit in parameter.units - parameter.looked_up:
                    found[unit] += 2 * prod(parameter.shape) * parameter.active
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Machine:
    """Devices and their links: memory in bytes, link rates in bytes per second, operations per second. Rates only serve
    ranking.
    """

    devices: int
    memory: float
    nodes: int = 1
    intra: float = 450e9
    inter: float = 50e9
    reads: float = 2e12
    operations: float = 400e12

    @property
    def per_node(self) -> int:
        """Devices that share the fast link."""
        return self.devices // self.nodes


@dataclass(frozen=True, slots=True)
class Load:
    """The workload: the length and the number of sequences, the bytes of an element, and whether the model is trained (with
    AdamW).
    """

    context: int
    batch: int
    width: int = 2
    train: bool = False


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes on one rank of one stage. All but `activations` are exact."""

    parameters: int
    gradients: int
    optimizer: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.parameters + self.gradients + self.optimizer + self.cache + self.activations


@dataclass(frozen=True, slots=True)
class RankTraffic:
    """Collectives of one rank: their number in a forward (and backward, in training), and the bytes that the rank
    contributes: per token, per step independent of tokens, and per sequence in addition to its tokens. They are `estimated`
        if data decide which
    tokens take part in one.
    """

    count: int
    bytes_per_token: int
    bytes_per_step: int = 0
    bytes_per_sequence: int = 0
    estimated: bool = False


def rank_memory(facts: Facts, units: Sequence[int], load: Load, *, tp: int, dp: int) -> RankMemory:
    """The memory of a rank of the stage with these units, with `dp` replicas."""
    mine = set(units)
    tensors, sizes = facts.used(units), facts.elements(tp)
    trained = [at for at in tensors if facts.parameters[at].trained] if load.train else []
    gradients = facts.gradients(tp) if load.train else ()
    sequences = -(-load.batch // dp)
    kept = sum(_cached(facts, unit - 1, load, tp) for unit in mine if 0 < unit <= facts.depth)
    # Per token and layer: a checkpointed input of each layer when training; two layers' worth of states when serving.
    layers = sum(1 for unit in mine if 0 < unit <= facts.depth)
    live = layers + 32 if load.train else 16
    tokens = load.context if load.train else 1
    return RankMemory(
        parameters=sum(facts.parameters[at].stored(tp, load) for at in tensors),
        gradients=sum(gradients[at] for at in trained) * load.width,
        # torch.optim.AdamW: two moments like the parameter, and a 4-byte step for each tensor that has a gradient.
        optimizer=2 * sum(sizes[at] for at in trained) * load.width + 4 * len(trained),
        cache=0 if load.train else kept * sequences,
        activations=live * tokens * facts.hidden * load.width * (1 if load.train else sequences),
    )


def _cached(facts: Facts, layer: int, load: Load, tp: int) -> int:
    """The bytes that a layer keeps between steps for one sequence on a rank."""
    if facts.cache is None or layer >= len(facts.cache):
        return 0
    return sum(one.elements // (tp if one.split else 1) * (one.width or load.width) for one in facts.cache[layer])


def sent(facts: Facts, units: Sequence[int], load: Load, *, tp: int) -> RankTraffic:
    """The collectives of tensor parallelism on a rank of the stage with these units; none at degree 1."""
    mine = set(units)
    found = [one for one in facts.traffic if tp > 1 and one.unit in mine and (load.train or not one.backward)]
    token = sum(one.per_rank(tp) for one in found if one.per is not Per.STEP)
    step = sum(one.per_rank(tp) for one in found if one.per is Per.STEP)
    step += sum(one.fixed_per_rank(tp) for one in found if one.per is Per.POSITION)
    sequence = sum(one.fixed_per_rank(tp) for one in found if one.per is Per.TOKEN)
    estimated = any(one.estimated for one in found)
    return RankTraffic(len(found), token * load.width, step * load.width, sequence * load.width, estimated)


def handed(facts: Facts, units: Sequence[int], load: Load) -> int:
    """The bytes that a rank of the stage with these units sends for one token: activations to the next stage, and in training
    gradients to the stage before.
    """
    layers = [unit for unit in units if 0 < unit <= facts.depth]
    into, out = (facts.handed[cut - 1] if 0 < cut <= len(facts.handed) else () for cut in (layers[0] - 1, layers[-1]))
    back = [one for one in into if load.train and one.returned]
    return sum(one.elements * (one.width or load.width) for one in (*out, *back) if one.per is not Per.STEP)


def summed(facts: Facts, units: Sequence[int], load: Load, *, tp: int) -> int:
    """The bytes of gradients that a rank of the stage with these units all-reduces over the replicas in each step. Of a
    table that is sharded along its rows only the rank's own rows count (torch 2.13.0: FSDP first converts a gradient to its
    parameter's placement).
    """
    sizes = facts.elements(tp)
    return sum(sizes[at] for at in facts.used(units) if load.train and facts.parameters[at].trained) * load.width


def seconds(facts: Facts, stages: Sequence[Sequence[int]], load: Load, machine: Machine, *, tp: int, dp: int) -> float:
    """Estimated seconds of a step (one token of every sequence, or one training step), for ranking only.

    Every stage reads its weights and computes. Collectives are rings over the slowest link that they use. In training, `m`
    microbatches take `m + stages - 1` turns of the pipeline. In serving, as many groups of sequences as there are stages are on
    their way at once, and a token passes through all stages before the next one of its sequence can begin: `stages` turns, in
    each of which a stage reads all of its weights.
    """
    sequences = -(-load.batch // dp)
    groups = sequences if load.train else min(sequences, len(stages))
    turns = sequences + len(stages) - 1 if load.train else len(stages)
    tokens = load.context if load.train else -(-sequences // groups)
    slowest = 0.0
    for units in stages:
        mine = set(units)
        work = sum(facts.flops[unit] for unit in mine) * tokens / tp * (3 if load.train else 1)
        parameters = (facts.parameters[at] for at in facts.used(units))
        weights = sum(one.stored(tp, load) * one.active for one in parameters)
        traffic = sent(facts, units, load, tp=tp)
        link = machine.intra if tp <= machine.per_node else machine.inter
        ring = traffic.bytes_per_token * tokens * 2 * (tp - 1) / tp / link + traffic.count * 5e-6
        hand_on = tokens * handed(facts, units, load) / machine.inter
        slowest = max(
            slowest,
            work / machine.operations + weights / machine.reads / (sequences if load.train else 1) + ring + hand_on,
        )
    gradients = 0.0
    if load.train and dp > 1:
        largest = max(summed(facts, units, load, tp=tp) for units in stages)
        gradients = 2 * (dp - 1) / dp * largest / (machine.intra if tp * dp <= machine.per_node else machine.inter)
    return turns * slowest + gradients
