"""The drafter (EAGLE head)."""

from dataclasses import dataclass
from typing import Literal

from plans.schema.model import Attention, Mlp, Rotary

HeadLayout = Literal["layers", "speculators", "modelopt", "nemo", "vllm"]
"""Layout in which an EAGLE head is published, beside that of its authors (SafeAILab/EAGLE, SpecForge). ``layers``: a
flat config with tensors named ``layers.0.``; ``vllm``: vLLM's wrapper of EAGLE-1."""
AuxSource = Literal["inputs", "outputs", "option"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """The drafter (EAGLE head): ``eagle`` of EAGLE-1 and -2, ``eagle3`` of EAGLE-3 and P-EAGLE.

    Optional flags are true or absent.
    """

    kind: Literal["eagle", "eagle3"]
    hidden_size: int
    target_hidden_size: int
    num_layers: int
    attention: Attention
    mlp: Mlp
    norm_eps: float
    fc_bias: bool
    draft_vocab_size: int
    """Rows of its lm_head, or of the base's where it has none."""
    maps_vocabulary: bool
    """``d2t`` is present: target id = draft id + d2t[draft id]."""
    own_embedding: bool
    """The drafter has an embedding table; otherwise it uses the base's."""
    aux_layers: tuple[int, ...]
    """Boundaries of the base (k: the input of layer k, L: the output of the last layer before the final norm) whose
    hidden states, concatenated, are the target feature of eagle3. Empty in eagle, and in an eagle3 head without ``fc``,
    whose layers take the state behind the base's final norm as it is."""
    aux_layers_from: AuxSource | None = None
    """Where they are from: ids of the config that name layers by their inputs or by their outputs, or an option of the
    request. None: the default of a producer that names none, and in plans of 4.0."""
    layout: HeadLayout | None = None
    """None: that of the authors of EAGLE."""
    base_head: bool | None = None
    """True: an eagle3 head without an lm_head, which uses the base's."""
    norm_before_residual: bool | None = None
    """True: the residual of the first layer is the normed hidden state."""
    fc_norm: Literal["joint", "each"] | None = None
    """RMS norm before ``fc``: of the whole target feature, or of the hidden state of each aux layer."""
    norm_output: bool | None = None
    """True: what is fed back is the output behind the final norm."""
    logit_scale: float | None = None
    """Factor of the logits."""
    mask_token_id: int | None = None
    """Token of the positions that are drafted in parallel (P-EAGLE); None: levels are drafted one after the other."""
    rotary: Rotary | None = None
    """Rotary table of all layers; None as in ``Model``."""

    @property
    def fc_width(self) -> int:
        """Width of the input of ``fc``: in eagle3 a target feature, in eagle an embedding beside a feature; 0: none."""
        return len(self.aux_layers) * self.target_hidden_size if self.kind == "eagle3" else 2 * self.hidden_size

    @property
    def own_head(self) -> bool:
        """True: the drafter has an lm_head of its own, otherwise it uses the base's."""
        return self.kind == "eagle3" and not self.base_head

    def attention_width(self, layer: int) -> int:
        """Width of what q, k and v of a layer are computed from: in the first of eagle3 an embedding beside a state."""
        return 2 * self.hidden_size if self.kind == "eagle3" and layer == 0 else self.hidden_size
