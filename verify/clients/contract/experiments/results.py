"""The experiments on one model, each run once however many clients ask."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from shardproof.planner.inputs.example import caching
from shardproof.planner.ir.findings import Source
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.loading.quiet import quiet
from shardproof.planner.twins.twin import one_thread
from shardproof.verify.clients.contract.client_spec import client_spec
from shardproof.verify.clients.contract.experiments.client_attention import (
    Answer,
    AttentionCall,
    AttentionRecorder,
    as_interface,
    as_rows,
    attend,
    repeated,
)
from shardproof.verify.clients.contract.experiments.decode_step import OneStep, one_step
from shardproof.verify.clients.contract.experiments.engine_run import (
    OutputFormError,
    Prompt,
    gap,
    prompt_of,
    run_alone,
    run_as_engine,
)
from shardproof.verify.clients.contract.experiments.frames import raising_line
from shardproof.verify.clients.contract.experiments.keywords import KeywordWatch, Loss, Sentinel, located, refused
from shardproof.verify.clients.contract.experiments.masks import MaskSeen, masks_seen
from shardproof.verify.clients.contract.experiments.mixing import Mixing, mixing_modules
from shardproof.verify.clients.contract.experiments.op_log import OpLog
from shardproof.verify.clients.contract.experiments.own_function import FunctionDifference, own_differences, spec_of
from shardproof.verify.clients.contract.experiments.trial import (
    Trial,
    TrialError,
    built_with,
    made_mask,
    raised_without_a_cache,
    registered,
    trial_of,
)
from shardproof.verify.clients.contract.facts import ContractFacts

T = TypeVar("T")


@dataclass(frozen=True)
class ExperimentOutcome(Generic[T]):
    """What an experiment found, or the error for which it found nothing."""

    found: T | None = None
    error: Exception | None = None

    @property
    def reason(self) -> str:
        """Why nothing was found, in one line."""
        return " ".join(f"{type(self.error).__name__}: {self.error}".split())[:200] if self.error is not None else ""


@dataclass(frozen=True, slots=True)
class EngineOutcome:
    """The model as an engine calls it.

    `states` are the hidden states, `(tokens, width)`. They are None where the run raised `error` at `source`; then `cause` is
    what would have to be otherwise: `mask`, `form` (of the attention's output), `weights`, or `call` for none of them.
    """

    calls: tuple[AttentionCall, ...]
    states: Tensor | None = None
    error: Exception | None = None
    cause: str = ""
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class WeightsUse:
    """Whether attention weights change the result of the model, and the first line that computes with them."""

    used: bool
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class _Form:
    """How the attention answers: rows of heads or Transformers' four dims, with weights or without, with masks made or not."""

    rows: bool = True
    weights: bool = False
    masks: bool = False


_EASIER = (("mask", _Form(masks=True)), ("form", _Form(rows=False)), ("weights", _Form(weights=True)))


@dataclass
class Experiments:
    """What experiments on a small copy of a model say; `loaded` is the model, `built` the same on the meta device."""

    loaded: LoadedModel
    built: nn.Module
    _kept: dict[str, ExperimentOutcome[Any]] = field(default_factory=dict)

    @property
    def trial(self) -> ExperimentOutcome[Trial]:
        """The small model."""
        return self._once("trial", lambda: trial_of(self.loaded, self.built, runs=_alone))

    @property
    def prompt(self) -> Prompt:
        """The tokens that are run."""
        found: Prompt | None = self._once("prompt", lambda: prompt_of(self._trial())).found
        assert found is not None, "a small model has a vocabulary"
        return found

    @property
    def alone(self) -> ExperimentOutcome[Tensor]:
        """The hidden states in Transformers, `(tokens, width)`, each sequence run alone."""
        return self._once("alone", lambda: _alone(self._trial()))

    @property
    def without_a_cache(self) -> ExperimentOutcome[Exception | None]:
        """What the base model raises without a cache, where it runs with one; None where it does not, or is too large to run."""
        return self._once("without a cache", lambda: raised_without_a_cache(self.loaded, self.built))

    @property
    def masks(self) -> ExperimentOutcome[list[MaskSeen]]:
        """The masks of the model's own run."""
        return self._once("masks", lambda: masks_seen(self._trial(), self.prompt))

    @property
    def mixing(self) -> ExperimentOutcome[list[Mixing]]:
        """The modules outside of the attention in which tokens see others."""
        return self._once("mixing", lambda: mixing_modules(self._trial(), self.prompt))

    def own_function(self, paths: Sequence[str]) -> ExperimentOutcome[list[FunctionDifference]]:
        """The attention modules whose own function is not the reference."""
        return self._once("own", lambda: own_differences(self._trial(), self.prompt, tuple(paths)))

    def as_engine(self, contract: ContractFacts) -> EngineOutcome:
        """The model as the engine of a contract runs it, without its keywords.

        Raises:
            TrialError: there is no small model.
        """
        made: ExperimentOutcome[EngineOutcome] = self._once(f"engine {contract}", lambda: self._engine(contract))
        if made.found is None:
            assert made.error is not None
            raise TrialError(made.reason) from made.error
        return made.found

    def used_weights(self, contract: ContractFacts) -> ExperimentOutcome[WeightsUse]:
        """Whether the model gives another result where the attention gives its weights back, and the line that uses them."""
        return self._once("weights", lambda: self._weights_use(contract))

    @property
    def step(self) -> ExperimentOutcome[OneStep]:
        """What one token, run alone at its position as in decoding, does otherwise than in its sequence."""
        return self._once("step", lambda: one_step(self._trial(), self.prompt))

    def lost_keywords(self, names: tuple[str, ...], *, head: bool) -> ExperimentOutcome[list[Loss]]:
        """Where keywords of these names are lost, given to the base model, or to the `head` model."""
        return self._once(f"keywords {names} {head}", lambda: self._lost(names, head=head))

    def _trial(self) -> Trial:
        outcome = self.trial
        if outcome.found is None:
            raise TrialError(outcome.reason)
        return outcome.found

    def _once(self, name: str, experiment: Callable[[], T]) -> "ExperimentOutcome[T]":
        if name not in self._kept:
            try:
                with quiet(), one_thread(), torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    self._kept[name] = ExperimentOutcome(experiment())
            except Exception as error:  # whatever the code of a model raises: the experiment found nothing
                self._kept[name] = ExperimentOutcome(error=error)
        return self._kept[name]

    def _engine(self, contract: ContractFacts) -> EngineOutcome:
        outcome = self._engine_run(contract, _Form())
        if outcome.error is None:
            return outcome
        for cause, form in _EASIER:
            if self._engine_run(contract, form).error is None:
                return EngineOutcome(outcome.calls, None, outcome.error, cause, outcome.source)
        return EngineOutcome(outcome.calls, None, outcome.error, "call", outcome.source)

    def _engine_run(self, contract: ContractFacts, form: _Form, log: OpLog | None = None) -> EngineOutcome:
        trial, prompt = self._trial(), self.prompt
        answer = _answer(trial, contract, prompt.bounds, form)
        masks = made_mask if form.masks else None
        weights = _marked(_weights, log) if log is not None else _weights
        recorder = AttentionRecorder({}, answer, weights if form.weights else lambda _: None)
        try:
            model = built_with(trial, contract.client, recorder, masks=masks)
        except Exception as error:  # the constructor refuses the attention of the client
            return EngineOutcome((), None, error, "call", raising_line(error))
        with registered(contract.client, recorder, masks=masks), log if log is not None else nullcontext():
            try:
                states = run_as_engine(trial, model, prompt.tokens, prompt.bounds, {})
            except Exception as error:  # what the engine would raise
                return EngineOutcome(tuple(recorder.calls), None, error, "call", raising_line(error))
        return EngineOutcome(tuple(recorder.calls), states)

    def _weights_use(self, contract: ContractFacts) -> WeightsUse:
        plain = self.as_engine(contract).states
        log = OpLog(lambda _: False)
        made = self._engine_run(contract, _Form(weights=True), log=log)
        if plain is None or made.states is None or gap(made.states, plain) <= self._trial().tolerance:
            return WeightsUse(False)
        return WeightsUse(True, next((op.source for op in log.ops if set(op.inputs) & log.marked), None))

    def _lost(self, names: tuple[str, ...], *, head: bool) -> list[Loss]:
        trial, prompt = self._trial(), self.prompt
        wanted = {name: Sentinel() for name in names}
        try:
            return self._watched(trial, prompt, wanted, head=head, masks=None)
        except Exception:  # a forward that needs its mask: the question is about keywords
            return self._watched(trial, prompt, wanted, head=head, masks=made_mask)

    def _watched(
        self, trial: Trial, prompt: Prompt, wanted: Mapping[str, Sentinel], *, head: bool, masks: Any
    ) -> list[Loss]:
        name = "shardproof_keywords"
        watch = KeywordWatch(wanted)
        recorder = AttentionRecorder({}, _as_asked, _weights, listen=watch)
        model = built_with(trial, name, recorder, masks=masks)
        row = prompt.rows[0]

        def run_once() -> None:
            with registered(name, recorder, masks=masks), torch.no_grad():
                if head:
                    model(input_ids=row, **caching(model, False), **wanted)
                else:
                    run_as_engine(trial, model, row, (row.shape[1],), wanted)

        try:
            run_once()
        except TypeError as error:
            if (loss := refused(error, model, tuple(wanted))) is None:
                raise
            return [loss]
        recorder.listen = lambda _: None
        return located(watch, run_once)


def _alone(trial: Trial) -> Tensor:
    prompt = prompt_of(trial)
    try:
        return run_alone(trial, trial.built(None), prompt)
    except OutputFormError:
        raise
    except Exception:  # a model that runs with its own attention function alone
        return run_alone(trial, trial.built("eager"), prompt)


def _as_asked(call: AttentionCall) -> Tensor:
    return as_interface(attend(call.query, call.key, call.value, spec_of(call)))


def _weights(call: AttentionCall) -> Tensor:
    """Attention weights as Transformers' own function gives them back: `(1, heads, queries, keys)`."""
    tokens = call.query.shape[2]
    one = torch.eye(tokens, dtype=call.query.dtype).expand(1, call.query.shape[1], tokens, tokens)
    return (
        attend(call.query, call.key, one, spec_of(call))
        if repeated(call.key, call.query).shape == call.key.shape
        else one
    )


def _marked(weights: Callable[[AttentionCall], Tensor], log: OpLog) -> Callable[[AttentionCall], Tensor]:
    """The weights, which the log knows again as inputs of later operations."""

    def marked(call: AttentionCall) -> Tensor:
        made = weights(call).clone()
        log.mark(made)
        return made

    return marked


def _answer(trial: Trial, contract: ContractFacts, bounds: tuple[int, ...], form: _Form) -> Answer:
    back = as_rows if form.rows else as_interface

    def answer(call: AttentionCall) -> Tensor:
        return back(attend(call.query, call.key, call.value, client_spec(trial, contract, call), bounds))

    return answer
