"""Saving the trained model, on one rank and on all, and going on from what was saved."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor.debug import CommDebugMode

from shardproof.planner.ir.findings import Fault
from shardproof.planner.loading.quiet import quiet
from shardproof.verify.run.training.asking import Measured, TrainingQuestion, Way
from shardproof.verify.run.training.bench import (
    NotAskedError,
    TrainingBench,
    WaitsForeverError,
    on_every_rank,
    on_one_device,
)
from shardproof.verify.run.training.steps import adamw, moved, step

Optimizer = torch.optim.Optimizer
GoOn = Callable[[TrainingBench, nn.Module, Optimizer, nn.Module, Optimizer], None]
"""Saves a model with its optimizer, and reads both into fresh ones."""

_ROUNDING = 1e-12
"""Relative: what is saved is read back to the same numbers."""


@contextmanager
def _shared_folder(bench: TrainingBench) -> Iterator[Path]:
    """A folder that the first rank makes and every rank uses; it is gone when the last rank has left."""
    made = tempfile.TemporaryDirectory(prefix="shardproof-trained-") if bench.rank == 0 else None
    name: list[str | None] = [made.name if made else None]
    dist.broadcast_object_list(name, src=0)
    try:
        assert name[0] is not None
        yield Path(name[0])
    finally:
        dist.barrier()
        if made:
            made.cleanup()


def _saved_by_first(bench: TrainingBench) -> Measured:
    """Whether saving needs the other ranks: all of them save, and the collectives are counted, so that nothing waits here."""
    _saves_alone(bench)
    ours = bench.sharded()
    with _shared_folder(bench) as folder, quiet(), CommDebugMode() as counted:
        ours.save_pretrained(folder)
    if counted.get_total_counts():
        names = ", ".join(sorted({str(name).rpartition(".")[2] for name in counted.get_comm_counts()}))
        raise WaitsForeverError(f"saving runs {names}, in which the first rank would wait for the others")
    return Measured(0.0, 0.0)


def _saved_by_all(bench: TrainingBench) -> Measured:
    """Every rank saves into one folder; the first one reads it back on one device."""
    _saves_alone(bench)
    ours = bench.sharded()
    with _shared_folder(bench) as folder, quiet():
        on_every_rank(bench, lambda: ours.save_pretrained(folder))
        return _read_back(bench, folder) if bench.rank == 0 else Measured(0.0, _ROUNDING)


def _saves_alone(bench: TrainingBench) -> None:
    """Raise `NotAskedError` on every rank where one device does not get its own weights back."""
    said: list[str | None] = [None]
    if bench.rank == 0:
        try:
            with tempfile.TemporaryDirectory(prefix="shardproof-trained-") as folder, quiet():
                on_one_device(lambda: bench.single.save_pretrained(folder))
                if not on_one_device(lambda: _read_back(bench, Path(folder))).right:
                    said[0] = "one device does not read its own weights back either"
        except NotAskedError as reason:
            said[0] = str(reason)
    dist.broadcast_object_list(said, src=0)
    if said[0] is not None:
        raise NotAskedError(said[0])


def _read_back(bench: TrainingBench, folder: Path) -> Measured:
    config = copy.deepcopy(bench.case.loaded.config)
    read = bench.case.loaded.model_class.from_pretrained(folder, config=config, dtype=torch.float64)
    return _same(bench.single, read)


def _same(want: nn.Module, got: nn.Module) -> Measured:
    held = dict(got.named_parameters())
    errors = {name: _apart(held.get(name), value) for name, value in want.named_parameters()}
    place = max(errors, key=lambda name: errors[name], default="")
    return Measured(errors.get(place, 0.0), _ROUNDING, place)


def _apart(held: torch.Tensor | None, value: torch.Tensor) -> float:
    """The largest difference; infinite where nothing is held."""
    if held is None:
        return float("inf")
    return float((held.double() - value.double()).abs().max()) if value.numel() else 0.0


def _resumed(go_on: GoOn, bench: TrainingBench) -> Measured:
    """All steps but one; a fresh model and optimizer read what was saved then, and take the last step."""
    alone, ours = bench.alone(), bench.sharded()
    before = {name: value.detach().clone() for name, value in alone.named_parameters()}
    optimizers = adamw(alone), adamw(ours)
    for batch in bench.batches[:-1]:
        on_one_device(lambda batch=batch: step(alone, optimizers[0], batch))  # type: ignore[misc]
        step(ours, optimizers[1], batch)
    on_one_device(lambda: step(alone, optimizers[0], bench.batches[-1]))
    fresh = bench.sharded()
    with torch.no_grad():
        for value in fresh.parameters():
            value.zero_()  # nothing of the first weights may pass for what was read
    optimizer = adamw(fresh)
    on_every_rank(bench, lambda: go_on(bench, ours, optimizers[1], fresh, optimizer))
    step(fresh, optimizer, bench.batches[-1])
    return moved(before, dict(alone.named_parameters()), dict(fresh.named_parameters()))


def _by_distributed_checkpoint(
    bench: TrainingBench, ours: nn.Module, old: Optimizer, fresh: nn.Module, new: Optimizer
) -> None:
    with _shared_folder(bench) as folder:
        weights, state = get_state_dict(ours, old)
        state_dict_saver.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
        weights, state = get_state_dict(fresh, new)
        state_dict_loader.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
        set_state_dict(fresh, new, model_state_dict=weights, optim_state_dict=state)


def _by_file_of_each_rank(_: TrainingBench, ours: nn.Module, old: Optimizer, fresh: nn.Module, new: Optimizer) -> None:
    """The weights are copied: torch 2.13 cannot write a distributed tensor whose local part begins inside a larger storage, as a
    later rank's rows do.
    """
    weights = {name: value.detach().clone() for name, value in ours.state_dict().items()}
    with tempfile.TemporaryDirectory(prefix="shardproof-trained-") as folder:
        file = Path(folder) / "state.pt"
        torch.save({"model": weights, "optimizer": old.state_dict()}, file)
        read = torch.load(file, weights_only=False)  # written above
    fresh.load_state_dict(read["model"])
    new.load_state_dict(read["optimizer"])


_ALL = Way("model.save_pretrained(folder) on every rank", _saved_by_all)
SAVING = TrainingQuestion("saving, every rank", "TR608", (_ALL,))
SAVING_ALONE = TrainingQuestion(
    "saving, first rank alone",
    "TR608",
    (Way("if rank == 0: model.save_pretrained(folder)", _saved_by_first), _ALL),
    Fault.CALLER,
)
RESUMING = TrainingQuestion(
    "resuming",
    "TR609",
    (
        Way(
            "torch.distributed.checkpoint with get_state_dict and set_state_dict",
            partial(_resumed, _by_distributed_checkpoint),
        ),
        Way(
            "torch.save of copies (clone()) of model.state_dict()'s tensors and of optimizer.state_dict(), a file a rank",
            partial(_resumed, _by_file_of_each_rank),
        ),
    ),
)
