"""What a client asks of a model's code and config, beyond its plan. Data; each client's is beside its dialect."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ContractFacts:
    """One client's contract with modeling code.

    `keywords` are what it gives its attention through the base model's `**kwargs`. With `own_attention` it puts an attention of
    its own behind Transformers' attention interface; all fields below are of such clients alone.
    """

    client: str
    keywords: tuple[str, ...]
    needs_keywords: bool = True
    """Whether its attention fails without the keywords; else a lost keyword is a warning."""
    calls_head: bool = False
    """Whether it calls the head model; an engine calls the base model."""
    own_attention: bool = False
    uses_auto_model: bool = True
    """Whether it makes the base model by `AutoModel.from_config`."""
    takes_interface_users: bool = False
    """Whether it takes a model that uses the attention interface without claiming to support backends."""
    positional: tuple[str, ...] = ()
    """Arguments that its attention takes by position, after the mask."""
    is_modelled: bool = False
    """Whether its attention is modelled here, so that its hidden states can be compared with those of Transformers."""
    reads_source: bool = False
    """Whether it reads the call of the attention off the source, and gives every layer one attention."""
    attention_from_config: bool = False
    """Whether it takes windows, soft-caps and head counts from the config, not from the call."""
    window_needs_kinds: bool = False
    """Whether a layer has a window only where `layer_types` says so; else a window without `layer_types` holds in all."""
    finds_images_by_offsets: bool = False
    """Whether it finds the images of a prompt by what the processor says of its replacements."""
    makes_head: bool = False
    """Whether it makes the head, norms and experts itself, so that names of weights and config fields have to be its own."""
    head_factors: tuple[str, ...] = ()
    """Config fields by which the head that it makes scales or caps the logits."""
    head_has_bias: bool = True
    """Whether the head that it makes may have a bias."""
    norm_names: tuple[str, ...] = ()
    """Ends of the class names of the norms that it replaces; empty where it finds them by what they compute."""
    chosen_experts: tuple[str, ...] = ()
    """Config fields in which it looks for the number of experts of a token, in its order."""
    named_arguments: tuple[str, ...] = ()
    """Arguments that the base model's forward has to name, even if it takes `**kwargs`."""
    open_arguments: tuple[str, ...] = ()
    """Arguments that the base model's forward has to name, unless it takes `**kwargs`."""
    attention_lacks: Mapping[str, str] = field(default_factory=dict)
    """Keywords of the interface that its attention does not know, and what they are called."""
