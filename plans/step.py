"""Row counts and message sizes of one step, as functions of the plan's options."""

from plans.schema import Draft, LayerClass, Model, Options, Tree

ALIGN_BYTES = 256


ROW_ALIGN = 64
"""KV rows come in this multiple: the cache of one head of any width is then a multiple of ALIGN_BYTES."""


def tree_rows(options: Options) -> int:
    """N: rows of one sequence in a verify; 1 in plain decoding."""
    return options.tree.total_token if options.tree else 1


def verify_rows(options: Options) -> int:
    """B * N: rows of one verify."""
    return options.batch * tree_rows(options)


def tree_depth(options: Options) -> int:
    """Drafted levels: the most tokens one step can accept."""
    return options.tree.depth + 1 if options.tree else 0


def accept_rows(options: Options) -> int:
    """A: the root and the most accepted nodes of one step."""
    return min(tree_depth(options) + 1, tree_rows(options))


def fed_rows(tree: Tree) -> tuple[int, ...]:
    """Rows of one sequence in each pass of the head that feeds drafted nodes back: a beam, or those with children."""
    if tree.paths is None:
        return (tree.top_k,) * tree.depth
    parents = {path[:-1] for path in tree.paths}
    return tuple(sum(len(path) == level for path in parents) for level in range(1, tree.depth + 1))


def beam_rows(options: Options) -> int:
    """Most rows of one sequence in one pass of the head while the tree grows: the root's is one."""
    return max((1, *fed_rows(options.tree))) if options.tree else 0


def forward_rows(options: Options) -> int:
    """R of the base: a prefill chunk or the trees of a verify, whichever is longer."""
    return max(options.prefill_chunk, verify_rows(options))


def draft_rows(options: Options) -> int:
    """R of the head: a prefill chunk, the rows of the accepted paths, or the beams."""
    return max(options.prefill_chunk, options.batch * accept_rows(options), options.batch * beam_rows(options))


def pool_rows(options: Options) -> int:
    """Candidates of one tree."""
    return options.tree.top_k * (1 + sum(fed_rows(options.tree))) if options.tree else 0


def kv_rows(options: Options) -> int:
    """T of a base layer: the tree, then the sequence."""
    return _align(tree_rows(options) + options.context, ROW_ALIGN)


def draft_tree_rows(options: Options) -> int:
    """KV rows of the growing tree: of each level what is fed back; at least one, which takes padding."""
    return max(1, sum(fed_rows(options.tree))) if options.tree else 1


def draft_kv_rows(options: Options) -> int:
    """T of a layer of the head: the levels of the growing tree, then the sequence."""
    return _align(draft_tree_rows(options) + options.context, ROW_ALIGN)


def rotary_rows(options: Options) -> int:
    """Positions that can occur: those of the context, and of a tree at its end."""
    return options.context + tree_depth(options) + 1


def message_words(options: Options) -> int:
    """Words of the message of a step, per sequence: accepted length, kept rows, tokens and parents of the next tree."""
    return options.batch * (1 + accept_rows(options) + 2 * tree_rows(options))


def feature_words(options: Options, rows: int) -> int:
    """Words before the features of so many rows: a token per row, and per sequence how many rows count and the kept
    rows; 256-aligned.
    """
    return _align(8 * (rows + options.batch * (1 + accept_rows(options))), ALIGN_BYTES) // 8


def feature_width(model: Model, draft: Draft) -> int:
    """F: values of the target feature of one position."""
    return model.hidden_size * (len(draft.aux_layers) if draft.kind == "eagle3" else 1)


def layer_class(model: Model, layer: int) -> LayerClass:
    """The class of a layer, by its global index."""
    for found in model.layers:
        if layer < found.num_layers:
            return found
        layer -= found.num_layers
    raise AssertionError("no such layer")


def _align(value: int, granule: int) -> int:
    return -(-value // granule) * granule
