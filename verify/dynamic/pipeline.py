"""A pipeline plan on real ranks: logits, loss, gradients and cached decoding of its stages against one device's."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from transformers import PreTrainedModel
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

from planner.frontend.load import Loaded, base_prefix
from planner.ir.plan import Plan
from verify.dynamic.cases import PROMPT, accepts, inputs
from verify.dynamic.compare import FLOOR, LIMIT, Comparison, relative_error, whole
from verify.dynamic.exact import Wide
from verify.dynamic.pipeline_cuts import Crossing, crossing, traced
from verify.dynamic.questions import logits
from verify.dynamic.reference import State, reference_model, with_plan
from verify.dynamic.stages import Between, Layout, Record, Stage, drop, layout_of, recorded, untie

MICROBATCHES = 2


@dataclass(slots=True)
class _Reference:
    """What one device answers, a microbatch at a time; `gradients` are summed over the microbatches."""

    logits: list[torch.Tensor] = field(default_factory=list)
    padded: list[torch.Tensor] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    record: Record = field(default_factory=Record)
    steps: list[Record] = field(default_factory=list)
    decoded: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Seat:
    """This rank's place: which stage of how many, and the ranks it exchanges with."""

    stage: int
    stages: int
    mesh: DeviceMesh

    @property
    def group(self) -> dist.ProcessGroup:
        return self.mesh.get_group("pp")

    def rank(self, stage: int) -> int:
        """The global rank of another stage with the same tensor-parallel place."""
        return dist.get_global_rank(self.group, stage)


def check_pipeline(loaded: Loaded, state: State, plan: Plan, tp: int, pp: int) -> tuple[Comparison, ...]:
    """What this rank of `tp * pp` compared; every rank must call it. `ValueError` where the plan makes no pipeline."""
    device = _device()
    single = reference_model(loaded, device)
    single.load_state_dict(state)
    layout = layout_of(single, plan.pp, plan.head_pp, base_prefix=base_prefix(single), stages=pp)
    mesh = init_device_mesh(device.type, (pp, tp), mesh_dim_names=("pp", "tp"))
    seat = _Seat(mesh.get_local_rank("pp"), pp, mesh)
    place = _between(loaded, single, layout, seat)
    stage = _stage(with_plan(loaded, plan), state, layout, place, seat)
    ids, mask = _batch(single)
    with Wide():  # not around the building of models: their float32 buffers are to be the same
        want = _reference(single, layout, ids, mask)
        compared = _padded(stage, want, ids, mask, seat)
        compared += _decoded(stage, want, ids, seat)
        return (*compared, *_gradients(stage, want, ids, single, seat))


def _between(loaded: Loaded, single: nn.Module, layout: Layout, seat: _Seat) -> Between:
    """What passes the cuts before and after this rank's stage."""
    graph = traced(loaded)
    cuts = [crossing(graph, layout.cut(stage, seat.stages), single) for stage in range(1, seat.stages)]
    carried = [Crossing(), *cuts, Crossing()]
    return Between(seat.stage, seat.stages, carried[seat.stage], carried[seat.stage + 1])


def _device() -> torch.device:
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _batch(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of all microbatches, one below the other; each microbatch has a padded row."""
    drawn = [inputs(model, seed=seed) for seed in range(MICROBATCHES)]
    return torch.cat([one.ids for one in drawn]), torch.cat([one.mask for one in drawn])


def _uncached(model: nn.Module) -> dict[str, object]:
    return {"use_cache": False} if accepts(model, "use_cache") else {}


def _loss(given: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The mean cross entropy of the next token; a mean square where the model gives no logits."""
    if given.ndim == 3 and given.shape[-1] > int(ids.max()):
        return nn.functional.cross_entropy(given[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    return given.square().mean()


def _reference(single: PreTrainedModel, layout: Layout, ids: torch.Tensor, mask: torch.Tensor) -> _Reference:
    want = _Reference()
    more = _uncached(single)
    for tokens, seen in zip(ids.chunk(MICROBATCHES), mask.chunk(MICROBATCHES), strict=True):
        with recorded(single, layout.named) as want.record:
            given = logits(single, tokens, **more)
        loss = _loss(given, tokens)
        loss.backward()
        want.logits.append(given.detach())
        want.losses.append(loss.detach())
        if accepts(single, "attention_mask"):
            with torch.no_grad():
                want.padded.append(logits(single, tokens, attention_mask=seen, **more))
    for name, value in single.named_parameters():
        want.gradients[name] = torch.zeros_like(value) if value.grad is None else value.grad
    if accepts(single, "past_key_values") and accepts(single, "use_cache"):
        _decode_alone(single, layout, ids, want)
    return want


def _steps(ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """The prompt, then one token after the other."""
    yield ids[:, :PROMPT]
    yield from ids[:, PROMPT:].split(1, dim=1)


@torch.no_grad()
def _decode_alone(single: PreTrainedModel, layout: Layout, ids: torch.Tensor, want: _Reference) -> None:
    """Decode on one device. What stages must give is the full recompute, unless the model itself decodes otherwise."""
    cache, steps = None, []
    for tokens in _steps(ids):
        with recorded(single, layout.named) as record:
            output = single(input_ids=tokens, use_cache=True, **({} if cache is None else {"past_key_values": cache}))
        cache = output.get("past_key_values")
        if cache is None:
            return
        steps.append(output[0])
        want.steps.append(record)
    decoded, recomputed = torch.cat(steps, dim=1), torch.cat(want.logits)
    want.decoded = recomputed if relative_error(decoded, recomputed) <= LIMIT else decoded


def _stage(loaded: Loaded, state: State, layout: Layout, place: Between, seat: _Seat) -> Stage:
    """This rank's stage: the weights of others dropped, its own sharded by the client's own code."""
    model = reference_model(loaded, _device())
    model.load_state_dict(state)
    absent = layout.absent(seat.stage, seat.stages)
    drop(model, absent)
    if seat.mesh.size(1) > 1:
        untie(model)
        styles = {
            name: style
            for name, style in model._expand_parallel_plan(model.tp_plan).items()
            if not any(f"{name}.".startswith(f"{other}.") for other in absent)
        }
        apply_tensor_parallelism(model, seat.mesh["tp"], styles)
    return Stage(model, layout, _device(), place)


def _schedule(stage: Stage, want: _Reference, ids: torch.Tensor, seat: _Seat, *, train: bool) -> ScheduleGPipe:
    """GPipe over this stage; what passes between stages has the form that the single-device model's layers were given."""
    received = (ids[: len(ids) // MICROBATCHES],) if stage.first else stage.forms(stage.receives)
    sent = (want.logits[0].detach().requires_grad_(),) if stage.last else stage.forms(stage.sends)
    runtime = PipelineStage(
        stage,
        seat.stage,
        seat.stages,
        stage.device,
        input_args=received if stage.first else _empty(received, train=train),
        output_args=_empty(sent, train=train),
        group=seat.group,
    )
    return ScheduleGPipe(runtime, MICROBATCHES, loss_fn=_loss if train else None, scale_grads=False)


def _empty(
    forms: Iterable[torch.Tensor], *, train: bool, device: torch.device | None = None
) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.empty_like(
            form,
            device=device,
            requires_grad=train and form.requires_grad,
            memory_format=torch.contiguous_format,
        )
        for form in forms
    )


def _entrance(stage: Stage, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (ids,) if stage.first else ()


def _padded(stage: Stage, want: _Reference, ids: torch.Tensor, mask: torch.Tensor, seat: _Seat) -> list[Comparison]:
    """The left-padded batch, through the stages without gradients."""
    if not want.padded:
        return []
    stage.record, stage.inputs = want.record, _uncached(stage.model)
    schedule = _schedule(stage, want, ids, seat, train=False)
    with torch.no_grad():
        given = schedule.eval(*_entrance(stage, ids), input_ids=ids, attention_mask=mask)
    if not stage.last:
        return []
    return _by_microbatch("left-padded logits", given, want.padded, mask)


def _by_microbatch(
    what: str, given: torch.Tensor, want: list[torch.Tensor], mask: torch.Tensor | None = None
) -> list[Comparison]:
    """Only positions that hold a token count, where there is a mask."""
    compared = []
    masks = [None] * MICROBATCHES if mask is None else [part.bool() for part in mask.chunk(MICROBATCHES)]
    for got, wanted, seen in zip(given.chunk(MICROBATCHES), want, masks, strict=True):
        if seen is not None and got.ndim == 3:
            got, wanted = got[seen], wanted[seen]
        compared.append(Comparison(what, relative_error(got, wanted), LIMIT))
    return compared


@torch.no_grad()
def _decoded(stage: Stage, want: _Reference, ids: torch.Tensor, seat: _Seat) -> list[Comparison]:
    """Prefill and decode, each stage with its own cache."""
    if want.decoded is None:
        return []
    cache, steps = None, []
    for tokens, record in zip(_steps(ids), want.steps, strict=True):
        stage.record = record
        stage.inputs = {"use_cache": True} | ({} if cache is None else {"past_key_values": cache})
        received = _empty(stage.forms(stage.receives), train=False, device=stage.device)
        for tensor in received:
            dist.recv(tensor, seat.rank(seat.stage - 1), group=seat.group)
        given = stage(*received, input_ids=tokens)
        cache = stage.cache
        if stage.last:
            steps.append(given)
        for tensor in () if stage.last else given:
            dist.send(tensor, seat.rank(seat.stage + 1), group=seat.group)
    if not stage.last:
        return []
    return [Comparison("decoded logits", relative_error(torch.cat(steps, dim=1), want.decoded), LIMIT)]


class _Sums:
    """Gradients, taken from each parameter as soon as a microbatch has given it.

    Left in place, `replicated_with_grad_allreduce` would reduce the first microbatch's again with the second's.
    Registered after the first forward, so that the client's own hooks, which it registers there, come before.
    """

    def __init__(self, stage: Stage) -> None:
        self.sums: dict[nn.Parameter, torch.Tensor] = {}
        self._handle = stage.register_forward_hook(self._register)

    def _register(self, stage: nn.Module, *_: object) -> None:
        self._handle.remove()
        for parameter in stage.parameters():
            if parameter.requires_grad and not parameter.is_meta:
                parameter.register_post_accumulate_grad_hook(self._take)

    def _take(self, parameter: torch.Tensor) -> None:
        assert isinstance(parameter, nn.Parameter) and parameter.grad is not None
        had = self.sums.get(parameter)
        self.sums[parameter] = parameter.grad if had is None else had + parameter.grad
        parameter.grad = None


def _gradients(
    stage: Stage, want: _Reference, ids: torch.Tensor, single: PreTrainedModel, seat: _Seat
) -> list[Comparison]:
    """A GPipe step over the microbatches: logits, loss, and the gradients that each stage is left with."""
    stage.record, stage.inputs = want.record, _uncached(stage.model)
    taken, losses = _Sums(stage), list[torch.Tensor]()
    schedule = _schedule(stage, want, ids, seat, train=True)
    target = ids if stage.last else None
    given = schedule.step(*_entrance(stage, ids), target=target, losses=losses, input_ids=ids)
    compared = []
    if stage.last:
        compared += _by_microbatch("logits", given, want.logits)
        error = relative_error(torch.stack(losses).sum(), torch.stack(want.losses).sum())
        compared.append(Comparison("loss", error, LIMIT))
    return compared + _compared_gradients(stage, taken.sums, want, single, seat)


def _compared_gradients(
    stage: Stage, sums: Mapping[nn.Parameter, torch.Tensor], want: _Reference, single: PreTrainedModel, seat: _Seat
) -> list[Comparison]:
    """Every parameter's gradient summed over its names and its stages; a stage compares what it owns."""
    named = {id(value): name for name, value in single.named_parameters()}
    canonical = {name: named[id(value)] for name, value in single.named_parameters(remove_duplicate=False)}
    own: dict[str, torch.Tensor] = {}
    for name, value in stage.model.named_parameters():
        if not value.is_meta:
            gradient = whole(sums[value]) if value in sums else torch.zeros_like(want.gradients[canonical[name]])
            own[canonical[name]] = own[canonical[name]] + gradient if canonical[name] in own else gradient
    largest = max((float(value.abs().max()) for value in want.gradients.values()), default=0.0)
    compared = []
    for name, wanted in want.gradients.items():
        total = own[name].clone() if name in own else torch.zeros_like(wanted)
        dist.all_reduce(total, group=seat.group)
        if name in own:
            error = relative_error(total, wanted, floor=FLOOR * largest)
            compared.append(Comparison("gradient", error, LIMIT, name))
    return compared
