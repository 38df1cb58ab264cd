"""Row counts of one decoding step, and the size and layout of every message that it sends, as functions of the plan.

The planner prices these sizes, ``plans.buffers`` counts the buffers that hold them, and the runtime sends views that
are cut by these layouts.

    message               from -> to                           sent as
    hidden states         embedding -> first stage             [B * N, H]                 broadcast
    hop                   stage -> stage, stage -> lm_head     [1 + a, B * N, H]          broadcast
    best                  among the lm_head's devices          [B * N, 2] float64         all-gather
    features              lm_head -> drafter                   FeatureLayout              broadcast
    candidates            among the drafter's devices          [W, 2 * top_k + 2] float64 all-gather
    step message          drafter -> all devices               StepLayout                 broadcast

Letters: B batch, N nodes of a tree with the root, A most rows kept by one step, H hidden size, a captured features (the
aux layers of an EAGLE-3 head), F width of a target feature, W rows of one pass of the drafter.
"""

from dataclasses import dataclass, replace

from plans.dtypes import BUFFER_BYTES, DTYPE_BYTES
from plans.schema import Draft, LayerClass, Model, Options, Tree

ALIGN_BYTES = 256
"""Buffers take a multiple of this; the words of a feature message too, so that its features are aligned."""

ROW_ALIGN = 64
"""KV rows come in this multiple: the cache of one head of any width is then a multiple of ALIGN_BYTES."""

WORD_BYTES = 8
"""Bytes of a word of a message: an int64 or a float64."""

SCORE_COLUMNS = 256
"""Cache rows whose scores are computed at once by ``context`` or ``head_dim`` (``runtime.model.scores.streamed``)."""

CODED_SCRATCH_ROWS, CODED_PADDING = 256, 16
"""Rows of a quantized weight for whose values in float32 a device has scratch, and values between them."""
CONVERTED_ROWS = 4096
"""Cache rows of every sequence that are converted at once, where a KV cache has another dtype than activations
(``runtime.model.layers.converted``)."""


# ---- rows ----


def steps(options: Options) -> tuple[tuple[int, Tree | None], ...]:
    """Most sequences and tree of each kind of step that a plan takes: of its tree, or of its schedule."""
    if options.schedule is None:
        return ((options.batch, options.tree),)
    last = (*(later.sequences - 1 for later in options.schedule[1:]), options.batch)
    return tuple((count, entry.tree) for count, entry in zip(last, options.schedule, strict=True))


def tree_for(options: Options, sequences: int) -> Tree | None:
    """Return the tree of a step with so many sequences."""
    return next(tree for most, tree in steps(options) if sequences <= most)


def step_options(options: Options, sequences: int, tree: Tree | None) -> Options:
    """Return the options of a step with so many sequences and a tree: its rows and messages follow from them."""
    return replace(options, batch=sequences, tree=tree, schedule=None)


def _nodes(tree: Tree | None) -> int:
    return tree.total_token if tree else 1


def _levels(tree: Tree | None) -> int:
    return tree.depth + 1 if tree else 0


def kept_nodes(tree: Tree | None) -> int:
    """Return how many nodes of a tree a step keeps at most: a path with its root; 1 in plain decoding."""
    return min(_levels(tree) + 1, _nodes(tree))


def _beam(tree: Tree | None) -> int:
    return max((1, *fed_rows(tree))) if tree else 0


def tree_rows(options: Options) -> int:
    """N: rows of one sequence in a verify, of the largest tree; 1 in plain decoding."""
    return max(_nodes(tree) for _, tree in steps(options))


def verify_rows(options: Options) -> int:
    """B * N: rows of one verify, at most."""
    return max(sequences * _nodes(tree) for sequences, tree in steps(options))


def tree_depth(options: Options) -> int:
    """Drafted levels: the most tokens one step can accept."""
    return max(_levels(tree) for _, tree in steps(options))


def accept_rows(options: Options) -> int:
    """A: rows of one sequence that a step keeps at most, the root and the accepted nodes: min(depth + 2, N)."""
    return max(kept_nodes(tree) for _, tree in steps(options))


def fed_rows(tree: Tree) -> tuple[int, ...]:
    """Rows of one sequence in each drafter pass that feeds drafted nodes back: a beam, or the nodes with children."""
    if tree.paths is None:
        return (tree.top_k,) * tree.depth
    parents = {path[:-1] for path in tree.paths}
    return tuple(sum(len(path) == level for path in parents) for level in range(1, tree.depth + 1))


def forward_rows(options: Options) -> int:
    """R of the base model: a prefill chunk or the trees of a verify, whichever is longer."""
    return max(options.prefill_chunk, verify_rows(options))


def is_chain(tree: Tree) -> bool:
    """Return True for a tree in which every node has one child, down to the last level."""
    return tree.top_k == 1 and tree.total_token == tree.depth + 2


def mask_rows(draft: Draft, tree: Tree | None) -> int:
    """Rows of one sequence that stand for tokens not drafted yet, in the one pass of parallel drafting; else 0."""
    return tree.depth if tree and draft.mask_token_id is not None else 0


def draft_rows(draft: Draft, options: Options) -> int:
    """R of the drafter: the longest of a prefill chunk, the rows of the accepted paths with masks, and the beams."""
    return max(options.prefill_chunk, draft_step_rows(draft, options))


def draft_step_rows(draft: Draft, options: Options) -> int:
    """Most rows of a pass of the drafter in a step: of the accepted paths with masks, or of the beams."""
    return max(
        sequences * rows
        for sequences, tree in steps(options)
        for rows in (accept_rows(options) + mask_rows(draft, tree), _beam(tree))
    )


def read_rows(draft: Draft, options: Options) -> int:
    """Most rows whose logits the drafter computes at once: those of a beam, or of all levels drafted in parallel."""
    return max(sequences * _read(draft, tree) for sequences, tree in steps(options))


def _read(draft: Draft, tree: Tree | None) -> int:
    return max(_beam(tree), 1 + mask_rows(draft, tree)) if tree else 0


def candidate_words(draft: Draft, options: Options) -> int:
    """Most words that one device of the drafter brings to an all-gather of candidates."""
    return max(
        sequences * _read(draft, tree) * (CandidateLayout(top_k=tree.top_k).words if tree else 0)
        for sequences, tree in steps(options)
    )


def tree_pool(tree: Tree) -> int:
    """Candidates among which the nodes of one tree are chosen; of a dynamic tree top_k + depth * top_k^2."""
    return tree.top_k * (1 + sum(fed_rows(tree)))


def pool_rows(options: Options) -> int:
    """Candidates of the trees of a step, at most; 0 in plain decoding."""
    return max(sequences * tree_pool(tree) if tree else 0 for sequences, tree in steps(options))


def cache_positions(options: Options, window: int | None) -> int:
    """Positions of a sequence that the cache of a base layer holds at a time: all, or the last ones.

    Of a window of w positions they are the w - 1 before a row, and the rows that are written at once.
    """
    if window is None:
        return options.context
    return min(options.context, window - 1 + written_rows(options))


def written_rows(options: Options) -> int:
    """Most rows of one sequence that are written to a cache at once: those of a chunk, or those kept by a step."""
    return max(options.prefill_chunk, accept_rows(options))


def least_kept_positions(model: Model, options: Options) -> int | None:
    """Last positions of a sequence that the caches of all layers hold; None: they hold all."""
    kept = min(cache_positions(options, layers.attention.window) for layers in model.layers)
    return kept if kept < options.context else None


def kv_rows(options: Options, window: int | None = None) -> int:
    """T of a base layer: the tree, then the positions of the sequence."""
    return round_up(tree_rows(options) + cache_positions(options, window), ROW_ALIGN)


def draft_tree_rows(draft: Draft, options: Options) -> int:
    """KV rows of the growing tree: the rows fed back of every level; at least one, which takes padding.

    Of parallel drafting the padding's row, and behind it those of the masks, which are written together with it.
    """
    trees = [tree for _, tree in steps(options) if tree]
    if draft.mask_token_id is not None:
        return 1 + max((mask_rows(draft, tree) for tree in trees), default=0)
    return max((1, *(sum(fed_rows(tree)) for tree in trees)))


def draft_kv_rows(draft: Draft, options: Options) -> int:
    """T of a layer of the drafter: the levels of the growing tree, then the sequence."""
    return round_up(draft_tree_rows(draft, options) + options.context, ROW_ALIGN)


def rotary_rows(options: Options) -> int:
    """Positions that can occur: those of the context, and those of a tree at its end."""
    return options.context + tree_depth(options) + 1


def feature_width(model: Model, draft: Draft) -> int:
    """F: values of the target feature of one position."""
    return model.hidden_size * max(1, len(draft.aux_layers))


def carry_planes(draft: Draft | None) -> int:
    """1 + a: the hidden state and the captured features, as they go from stage to stage."""
    return 1 + (len(draft.aux_layers) if draft is not None and draft.kind == "eagle3" else 0)


def layer_class(model: Model, layer: int) -> LayerClass:
    """Return the class of a layer, by its global index."""
    if model.pattern is not None:
        return model.layers[model.pattern[layer % len(model.pattern)]]
    for layers in model.layers:
        if layer < layers.num_layers:
            return layers
        layer -= layers.num_layers
    raise AssertionError("no such layer")


# ---- messages ----


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLayout:
    """Words of one sequence in the step message, int64; the message is one row of words per sequence.

    0          1 … A         A+1 … A+N       A+N+1 … A+2N
    accepted | kept nodes  | tokens        | parents
    """

    kept: int
    """A."""
    nodes: int
    """N."""

    @property
    def path(self) -> slice:
        """Nodes of the last tree that are kept."""
        return slice(1, 1 + self.kept)

    @property
    def tokens(self) -> slice:
        """Tokens of the next tree, root first."""
        return slice(self.path.stop, self.path.stop + self.nodes)

    @property
    def parents(self) -> slice:
        """Parents of the next tree's nodes."""
        return slice(self.tokens.stop, self.tokens.stop + self.nodes)

    @property
    def words(self) -> int:
        """Words of one sequence: 1 + A + 2N."""
        return 1 + self.kept + 2 * self.nodes


PLAIN_STEP = StepLayout(kept=1, nodes=1)
"""Layout of plain decoding: the tree is its root."""


def tree_layout(verified: Tree | None, drafted: Tree | None) -> StepLayout:
    """Return the layout of the message of a step that verified trees of one kind and drafted the next of another."""
    return StepLayout(kept=kept_nodes(verified), nodes=_nodes(drafted))


def step_layout(options: Options) -> StepLayout:
    """Return the layout of the largest step message of a plan."""
    return StepLayout(kept=accept_rows(options), nodes=tree_rows(options))


def message_words(options: Options) -> int:
    """Words of the step message of all sequences."""
    return options.batch * step_layout(options).words


def message_bytes(options: Options) -> int:
    """Bytes of the step message: 8 * B * (1 + A + 2N)."""
    return WORD_BYTES * message_words(options)


def hidden_bytes(model: Model, options: Options) -> int:
    """Bytes of the hidden states of a verify, from the embedding to the first stage and in every sum over a group."""
    return verify_rows(options) * model.hidden_size * DTYPE_BYTES[options.dtype]


def hop_bytes(model: Model, draft: Draft | None, options: Options) -> int:
    """Bytes from one stage to the next and to the lm_head: hidden states and captured features."""
    return carry_planes(draft) * hidden_bytes(model, options)


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureLayout:
    """The message to the drafter: int64 words, zeros up to a multiple of ALIGN_BYTES, then a feature per row.

    words     0 … S          S … S(1+n)     S(1+n) … S(1+n+A)
              accepted [S] | tokens [S, n] | path [S, A]
    """

    sequences: int
    """S."""
    rows: int
    """n, of each sequence."""
    kept: int
    """A."""
    row_bytes: int
    """Bytes of the feature of one row."""

    @property
    def accepted(self) -> slice:
        """Words that count the rows of each sequence behind its first."""
        return slice(0, self.sequences)

    @property
    def tokens(self) -> slice:
        """Words with the token behind each row."""
        return slice(self.accepted.stop, self.accepted.stop + self.sequences * self.rows)

    @property
    def path(self) -> slice:
        """Words with the nodes of the last tree that are kept."""
        return slice(self.tokens.stop, self.tokens.stop + self.sequences * self.kept)

    @property
    def feature_start(self) -> int:
        """Offset of the features, in bytes."""
        return round_up(WORD_BYTES * self.path.stop, ALIGN_BYTES)

    @property
    def nbytes(self) -> int:
        """Bytes of the message."""
        return self.feature_start + self.sequences * self.rows * self.row_bytes


def feature_layout(
    model: Model, draft: Draft, options: Options, *, sequences: int, rows: int, kept: int | None = None
) -> FeatureLayout:
    """Return the layout of a feature message with so many rows of each of so many sequences.

    ``kept``: nodes of a path; None: as many as a step keeps at most.
    """
    row_bytes = feature_width(model, draft) * DTYPE_BYTES[options.dtype]
    return FeatureLayout(sequences=sequences, rows=rows, kept=kept or accept_rows(options), row_bytes=row_bytes)


def step_features(model: Model, draft: Draft, options: Options) -> FeatureLayout:
    """Return the layout of the feature message of a step: the kept rows of all sequences."""
    return feature_layout(model, draft, options, sequences=options.batch, rows=accept_rows(options))


def prefill_features(model: Model, draft: Draft, options: Options) -> FeatureLayout:
    """Return the layout of the feature message of a prefill chunk: rows of one sequence."""
    return feature_layout(model, draft, options, sequences=1, rows=options.prefill_chunk)


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateLayout:
    """Words of one row in the all-gather of candidates, float64, which holds a float32 and a token id exactly.

    0 … k              k … 2k           2k                 2k + 1
    highest logits   | their tokens   | highest logit m  | sum of exp(logit - m)
    """

    top_k: int
    """k."""

    @property
    def values(self) -> slice:
        """The k highest logits of a member's rows of the lm_head."""
        return slice(0, self.top_k)

    @property
    def tokens(self) -> slice:
        """Their tokens."""
        return slice(self.top_k, 2 * self.top_k)

    @property
    def highest(self) -> int:
        """The word with the highest logit m."""
        return 2 * self.top_k

    @property
    def total(self) -> int:
        """The word with the sum of exp(logit - m)."""
        return 2 * self.top_k + 1

    @property
    def words(self) -> int:
        """Words of one row: 2k + 2."""
        return 2 * self.top_k + 2


NORM_SUMS = 2
"""Float32 words of one row in the all-reduce of norms over all heads: the sum of squares of queries, and of keys."""
BEST_WORDS = 2
"""Words of one row in the all-gather of the best token, float64: the highest logit and its token."""


def best_bytes(options: Options) -> int:
    """Bytes that one device of the lm_head brings to the all-gather of a verify."""
    return WORD_BYTES * BEST_WORDS * verify_rows(options)


def candidate_bytes(options: Options, rows: int) -> int:
    """Bytes that one device of the drafter brings to the all-gather of the candidates of so many rows."""
    assert options.tree is not None, "plain decoding drafts nothing"
    return WORD_BYTES * CandidateLayout(top_k=options.tree.top_k).words * rows


def norm_sum_bytes(options: Options) -> int:
    """Bytes of the all-reduce of a verify for norms over all heads."""
    return verify_rows(options) * NORM_SUMS * BUFFER_BYTES["float32"]


# ---- messages inside a subgroup ----


def partial_shape(rows: int, query_heads: int, head_dim: int) -> tuple[int, int, int]:
    """Shape [R, h, D + 1], float32, that a member brings to the all-gather by context: outputs, and log-sum-exp."""
    return rows, query_heads, head_dim + 1


def scores_shape(rows: int, query_heads: int, columns: int) -> tuple[int, int, int]:
    """Shape [R, h, columns], float32, of the scores of a block of cache rows: all-reduced by head_dim."""
    return rows, query_heads, columns


def score_blocks(kv_rows: int) -> tuple[slice, ...]:
    """Blocks of SCORE_COLUMNS cache rows, the last one shorter, that attention in a subgroup goes through in turn."""
    return _blocks(kv_rows, SCORE_COLUMNS)


def converted_blocks(kv_rows: int) -> tuple[slice, ...]:
    """Blocks of CONVERTED_ROWS cache rows, the last one shorter, that attention converts in turn."""
    return _blocks(kv_rows, CONVERTED_ROWS)


def _blocks(rows: int, most: int) -> tuple[slice, ...]:
    return tuple(slice(start, min(start + most, rows)) for start in range(0, rows, most))


def round_up(value: int, granule: int) -> int:
    """Return the least multiple of ``granule`` that is at least ``value``."""
    return -(-value // granule) * granule


MERGED_ITEMS = 16
"""Most items, query heads of rows, of a KV head and a sequence whose splits of the cache a GPU's attention merges by
itself: one block of the tensor cores. Of more, a kernel of its own does it, with more programs."""


def merges_itself(rows: int, group: int) -> bool:
    """Return whether attention is one kernel on a GPU; ``rows``: of a sequence, ``group``: query heads of a KV head."""
    return rows * group <= MERGED_ITEMS
