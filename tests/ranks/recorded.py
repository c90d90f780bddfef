"""What real ranks hold and send: every collective of one forward and backward, with the elements a rank puts in."""

import inspect
import multiprocessing
import os
import socket
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeAlias, TypeVar
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, PreTrainedConfig
from transformers.distributed.configuration_utils import DistributedConfig

from shardproof.planner.inputs.example import caching
from shardproof.planner.loading.quiet import quiet
from shardproof.planner.transformers_facts.caches import CACHE_OBJECTS
from shardproof.verify.run.collectives.threads import Threads
from shardproof.verify.run.collectives.threads import _Group as Group
from shardproof.verify.run.inputs import SIZES, inputs
from shardproof.verify.run.pipeline import check as pipeline_check
from shardproof.verify.run.pipeline.schedules import StageSlot
from shardproof.verify.run.reference import from_state, sharded_model, single_device, with_plan
from shardproof.verify.stages.case import Case
from shardproof.verify.stages.cutting import laid_out
from shardproof.verify.stages.exact import Wide, copied_outputs

TOKENS = (SIZES.rows, SIZES.length)

Recorded = tuple[int, Counter[tuple[str, int]]]
"""Elements of the parameters on the rank; collectives by kind and elements -> how often."""


Trained: TypeAlias = "tuple[int, int]"
"""Elements of the gradients on the rank after a step, and bytes of what AdamW keeps."""


class _Recorder(TorchDispatchMode):
    """Collectives as they are called, also from inside DTensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        self.found: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        name = func.overloadpacket.__name__
        if func.namespace in ("c10d", "_c10d_functional", "_c10d_functional_autograd"):
            if "all_reduce" in name or "allreduce" in name:
                given = args[0][0] if isinstance(args[0], list | tuple) else args[0]
                self.found["all-reduce", given.numel()] += 1
            elif "all_gather" in name or "allgather" in name:
                given = args[1] if "base" in name else args[0]
                self.found["all-gather", given.numel()] += 1
        return func(*args, **(kwargs or {}))


def record(case: Case, *, train: bool = True) -> list[Recorded]:
    """By every rank of a case, in processes forked from this one."""
    return _forked(case.tp, lambda: measured(case, train=train))


def replicated(case: Case, replicas: int) -> list[int]:
    """Elements that every rank sums over the replicas in a step, forward and backward, in processes forked from this one:
    Transformers' own replicas (5.23.0, `dp_replicate_size`, by torch's FSDP over groups of one rank).
    """
    return _forked(case.tp * replicas, lambda: _summed(case, replicas))


def _summed(case: Case, replicas: int) -> int:
    single = single_device(case, torch.device("cpu"))
    degrees = DistributedConfig(tp_size=case.tp, fsdp_size=1, dp_replicate_size=replicas)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "FSDP2-wrapped module .* returned a view tensor"
        )  # of the client's own modules
        model = from_state(with_plan(case.loaded, case.plan), single.state_dict(), degrees)
        beside = list(range(dist.get_rank() % case.tp, case.tp * replicas, case.tp))
        found = 0

        def counting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> object:
            nonlocal found
            group = kwargs.get("group")
            found += tensor.numel() if group is not None and dist.get_process_group_ranks(group) == beside else 0
            return all_reduce(tensor, *args, **kwargs)

        all_reduce = dist.all_reduce
        with patch.object(dist, "all_reduce", counting), copied_outputs(model):
            model(**inputs(single).whole(), **caching(model, False))[0].sum().backward()
    return found


Answer = TypeVar("Answer")


def _forked(world: int, work: Callable[[], Answer]) -> list[Answer]:
    """What every one of so many ranks answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    ranks = [
        context.Process(target=_rank, args=(world, number, port, pipes[number][1], work), daemon=True)
        for number in range(world)
    ]
    for rank in ranks:
        rank.start()
    try:
        answers: list[Answer | str] = [reader.recv() if reader.poll(240) else "no answer" for reader, _ in pipes]
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    told = [answer for answer in answers if not isinstance(answer, str)]
    assert len(told) == len(answers), answers
    return told


def _rank(world: int, number: int, port: int, answer: Connection, work: Callable[[], object]) -> None:
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        dist.init_process_group("gloo", rank=number, world_size=world)
        answer.send(work())
    except Exception as error:
        answer.send(f"{type(error).__name__}: {error}")


class Recorder(Protocol):
    """What counts collectives while it is entered."""

    found: Counter[tuple[str, int]]

    def __enter__(self) -> object: ...
    def __exit__(self, *args: Any) -> object: ...


def measured(
    case: Case,
    recorder: Recorder | None = None,
    *,
    train: bool = True,
    kept: list[int | None] | None = None,
    trained: list[Trained] | None = None,
    given: list[tuple[int, int]] | None = None,
    names: Collection[str] = (),
) -> Recorded:
    """By the rank that this runs on, in a process group that is there; with `train` in the backward pass too. `kept` is told
    the elements that the rank keeps for the next step, `trained` what a step of training leaves, `given` its rows and tokens.
    `names` are the arguments that the trace has.

    Raises:
        ValueError: the model refuses what its trace has (images, sounds).
    """
    recorder = recorder or _Recorder()
    reference = single_device(case, torch.device("cpu"))
    model = sharded_model(case, reference.state_dict())
    held = sum(_local(parameter).numel() for parameter in model.parameters())
    call: Callable[..., Any] = model.__call__
    asked = inputs(reference)  # with images, sounds and the encoder's tokens, where the trace has them
    if asked.refused is not None and not set(names) <= set(asked.whole()):
        raise ValueError(f"it refuses what its trace takes: {asked.refused}")
    if given is not None:  # a model may fold rows together, and want more of them
        given.append((asked.ids.shape[0], asked.ids.shape[1]) if asked.name else TOKENS)
    with Wide(), copied_outputs(model), recorder, torch.set_grad_enabled(train):
        logits = call(**asked.whole(), **caching(model, False))[0]
        if train:
            logits.sum().backward()
    if kept is not None:
        torch.manual_seed(0)
        kept.append(_kept(model, torch.randint(0, 50, TOKENS)))
    if trained is not None:
        trained.append(_trained(model))
    return held, recorder.found


def _trained(model: nn.Module) -> Trained:
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    optimizer.step()
    gradients = [_local(value.grad) for value in model.parameters() if value.grad is not None]
    states = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    bytes_of = [part.numel() * part.element_size() for part in map(_local, states)]
    return sum(gradient.numel() for gradient in gradients), sum(bytes_of)


def _kept(model: nn.Module, ids: torch.Tensor) -> int | None:
    """Elements in the cache that a forward returns, and in the modules, where it leaves its states; None where it raises."""
    before = _attributes(model)  # held, so that no new tensor takes the place of one
    given, config = {}, model.config
    assert isinstance(config, PreTrainedConfig)
    if not config.is_encoder_decoder:
        names = inspect.signature(model.forward).parameters
        given = {name: DynamicCache(config=config) for name in CACHE_OBJECTS if name in names}
    try:
        with Wide(), torch.no_grad(), copied_outputs(model):
            output = model(input_ids=ids, use_cache=True, **given)
    except Exception:  # what one device cannot answer either is another benchmark's question
        return None
    cache = next(
        (output[name] for name in CACHE_OBJECTS if output.get(name) is not None), next(iter(given.values()), None)
    )
    old = {id(value) for value in before}
    left = [value for value in _attributes(model) if id(value) not in old]
    found = {(t.data_ptr(), t.shape): t.numel() for t in (*_inside(cache, set()), *left) if t.dim() > 1}
    return sum(found.values())


def _attributes(model: nn.Module) -> list[torch.Tensor]:
    return [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]


def _inside(value: object, seen: set[int]) -> Iterator[torch.Tensor]:
    """Every tensor that hangs on an object."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _inside(one, seen)
    elif hasattr(value, "__dict__") and id(value) not in seen:
        seen.add(id(value))
        yield from _inside(vars(value), seen)


def _local(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


@dataclass(frozen=True, slots=True)
class OfStage:
    """What a rank of a pipeline held and sent: its layers, elements of its parameters, and bytes to other stages in a step of
    so many tokens.
    """

    layers: range
    parameters: int
    sent: int
    tokens: int


def staged(case: Case) -> list[OfStage]:
    """By every rank of a case with pipeline stages, as threads of this process: one step, forward and backward."""
    single = single_device(case, torch.device("cpu"))
    before = pipeline_check.run_single_device(case, single, laid_out(case, single))
    sent = [0] * (case.pp * case.tp)
    send = Group.send

    def counting(group: Group, tensors: list[torch.Tensor], *args: Any) -> object:
        # One number is torch's first greeting between two neighbours (2.13.0, `_init_p2p_neighbors`).
        sent[group.world_rank] += sum(one.numel() * one.element_size() for one in tensors if one.numel() > 1)
        return send(group, tensors, *args)

    def rank(number: int) -> OfStage:
        mesh = init_device_mesh("cpu", (case.pp, case.tp), mesh_dim_names=("pp", "tp"))
        slot = StageSlot(case.pp, mesh)
        (stage,) = (
            pipeline_check._stage(case, before, place, slot) for place in pipeline_check._places(case, before, slot)
        )
        with Wide():
            pipeline_check._gradients((stage,), before, slot, case.staging)
        held = sum(_local(value).numel() for _, value in stage.owned())
        return OfStage(stage.own, held, sent[number], before.asked.ids.numel())

    with quiet(), patch.object(Group, "send", counting), Threads(case.pp * case.tp) as ranks:
        return ranks.run(rank, timeout=240.0)
