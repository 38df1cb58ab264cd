"""Arguments of the kernels: one table of names for each kernel, which ``ops`` fills in and the kernel unpacks.

An argument is an int64: an address, a stride in bytes, or a count. A matrix is an address and the stride of its rows.
"""

from typing import NamedTuple

from runtime.model.kernels.processor import lanes

EPSILON_UNIT = 2.0**-60
"""Unit of a norm's epsilon, which a kernel takes as a whole number."""
CODES = ("int4", "int8", "float8_e4m3fn", "float4_e2m1")
"""Kinds of codes of quantized weights, as kernels count them."""
SCALES = ("bfloat16", "float16", "float32", "float8_e8m0")
"""Dtypes of their scales."""
CODED_ROWS = 5
"""Rows of a quantized weight for which a thread has scratch: some that are float32, and their factors."""
MANY_ROWS, STRIP_ROWS = (144, 12) if lanes() == 16 else (48, 6)
"""Least rows of x that are multiplied with panels of a weight, and those that are packed together for it."""
LEAST_STACK_BYTES = 2 << 20
"""Least stack of a thread: the panel of ``multiply_panels``, 1 MiB, and less than as much for all else."""
ITEMS, FEW_ITEMS, MANY_COLUMNS = 16, 4, 16384
"""Most items, query heads of rows, that attend to a KV head together: to up to MANY_COLUMNS columns, and to more."""
LINE_FLOATS = 16
"""Float32 of a line of the processor's cache; no vector has more."""


def attend_floats(head_dim: int, columns: int) -> int:
    """Return the float32 of scratch of a thread that attends: queries, sums, rows of scores and weights of its items.

    A row is an odd number of lines, so that the rows do not fall into the same sets of the cache. Weights are those of
    ``attend_value_tiles``, bfloat16, with up to 96 zeros. Scratch for some columns does for fewer.
    """

    def lines(columns: int) -> int:
        return (-(-columns // LINE_FLOATS) | 1) + (-(-(columns + 96) // (2 * LINE_FLOATS)) | 1)

    rows = ITEMS * lines(min(columns, MANY_COLUMNS))
    if columns > MANY_COLUMNS:
        rows = max(rows, FEW_ITEMS * lines(columns))
    return LINE_FLOATS * (2 * ITEMS * -(-head_dim // LINE_FLOATS) + rows)


class Product(NamedTuple):
    """out [rows, outputs] = x [rows, inputs] @ weight [outputs, inputs].T + added."""

    x: int
    x_stride: int
    weight: int
    weight_stride: int
    added: int
    """[rows, outputs], or [1, outputs] with stride 0; address 0: nothing is added."""
    added_stride: int
    out: int
    out_stride: int
    rows: int
    inputs: int
    outputs: int
    widened: int
    """Scratch for x as float32 [rows, inputs], or packed where tiles (``multiply_tiles``) or panels are multiplied
    (``multiply_panels``), one for the team or one per thread; address 0: x is multiplied as it is."""
    widened_stride: int
    widened_per_thread: int
    """1: each thread has its own scratch and waits for no other."""


class CodedProduct(NamedTuple):
    """out [rows, outputs] = x [rows, inputs] @ weight.T + added, of a weight in codes (``plans.quantized``)."""

    x: int
    x_stride: int
    code: int
    """Kind of codes: index in CODES."""
    codes: int
    codes_stride: int
    scale: int
    """Kind of scales: index in SCALES."""
    scales: int
    scales_stride: int
    zeros: int
    """uint8 [outputs, groups]; address 0: half of the range of the codes."""
    zeros_stride: int
    group: int
    """Columns that share a scale."""
    order: int
    """int32 [inputs]: column of x of each of the weight, -1: none, x is 0 there; address 0: their own order."""
    added: int
    """As in ``Product``."""
    added_stride: int
    out: int
    out_stride: int
    rows: int
    inputs: int
    outputs: int
    widened: int
    """As in ``Product``."""
    widened_stride: int
    widened_per_thread: int
    values: int
    """Scratch for rows of the weight as float32 [inputs], CODED_ROWS for each thread."""
    values_stride: int
    parts: int
    """Equal parts of the outputs, of each of which a thread computes the same range."""


class Codes(NamedTuple):
    """A weight in codes, of a layer; fields as in ``CodedProduct``."""

    code: int
    codes: int
    codes_stride: int
    scale: int
    scales: int
    scales_stride: int
    zeros: int
    zeros_stride: int
    group: int
    order: int
    inputs: int


class GroupedProduct(NamedTuple):
    """out [rows, outputs]: row r = row row_index[r] of x @ weights [groups, outputs, inputs] [group of r].T."""

    x: int
    x_stride: int
    row_index: int
    """int64 [rows]; address 0: row r of out is computed from row r of x."""
    weights: int
    group_stride: int
    weight_stride: int
    """Stride of the rows of one group's weight."""
    ends: int
    """int64 [groups]: the rows of group g are ends[g - 1] … ends[g] - 1."""
    out: int
    out_stride: int
    rows: int
    groups: int
    inputs: int
    outputs: int
    widened: int
    """Scratch for the rows of x in the order of ``row_index``, as in ``Product``; 0: x is read where it is."""
    widened_stride: int


class Norm(NamedTuple):
    """out [rows, inputs] = x / sqrt(mean(x ** 2) + epsilon) * weight [inputs]."""

    x: int
    x_stride: int
    weight: int
    epsilon: int
    """In multiples of EPSILON_UNIT."""
    out: int
    out_stride: int
    rows: int
    inputs: int


class Gated(NamedTuple):
    """out [rows, channels] = act(gate) * up; a row of x is [gates, ups], 2 * channels."""

    x: int
    x_stride: int
    out: int
    out_stride: int
    rows: int
    channels: int
    gelu: int
    """1: the activation is GELU by its tanh approximation; 0: SiLU."""


class Highest(NamedTuple):
    """The highest of each row of logits [rows, columns], of equal ones the first."""

    logits: int
    logits_stride: int
    tokens: int
    """int64 [rows]: their columns."""
    words: int
    """float64 [rows, 2]: the highest logits, and their columns plus ``first``; address 0: not written."""
    first: int
    """Token of column 0."""
    rows: int
    columns: int


class Top(NamedTuple):
    """The ``top_k`` highest of each row of logits [rows, columns], best first."""

    logits: int
    logits_stride: int
    best: int
    """int64 [rows, top_k]: columns of the highest logits."""
    scores: int
    """float32 [rows, top_k]: their log-softmax; their logits where there are ``words``."""
    words: int
    """float64 [rows, 2 * width + 2]: a message of ``plans.step.CandidateLayout``; address 0: not written."""
    width: int
    """Candidates of a row of the message; those behind ``top_k`` are -inf."""
    first: int
    """Token of column 0."""
    rows: int
    columns: int
    top_k: int


class Merged(NamedTuple):
    """The ``top_k`` best of the candidates of all members of a group, of equal ones the first member's."""

    gathered: int
    """float64 [members, rows, 2 * top_k + 2]: messages of ``plans.step.CandidateLayout``."""
    members: int
    best: int
    """int64 [rows, top_k]: tokens."""
    scores: int
    """float32 [rows, top_k]: log-softmax over all members."""
    rows: int
    top_k: int


class Attend(NamedTuple):
    """Attention of B sequences, n rows each: W = B * n rows. h query heads, k KV heads of D dims, t cache rows.

    A cache row is [2k, D]: the keys of its k KV heads, then their values; of codes each with a scale (``kv_codes``).
    """

    qkv: int
    """[W, h + 2k, D]: queries, keys, values; queries and keys are rotated in place."""
    cosines: int
    """[W, D]"""
    sines_offset: int
    """Bytes from cosines to sines [W, D]."""
    rows: int
    """W"""
    rows_per_sequence: int
    """n"""
    query_heads: int
    kv_heads: int
    head_dim: int
    seen: int
    """The first of the t cache rows that are attended to, of the first sequence."""
    sequence_stride: int
    row_stride: int
    """Stride of cache rows."""
    all_rows: int
    """Cache row 0 of the first sequence in the cache, from which ``written_index`` counts."""
    written_index: int
    """int64 [W]: the cache row that each row is written to, among those of all sequences; 0: see ``written``."""
    written: int
    """The cache row that the first row is written to; the n rows of a sequence lie one behind the other."""
    columns: int
    """t"""
    tree_columns: int
    """Number of tree rows; they are the first of the t cache rows."""
    oldest: int
    """int64 [B]: the column from which on the positions of a sequence follow one another, around the columns behind the
    tree's; address 0: they begin there."""
    positions: int
    """int64 [W]: positions of the rows, where there are ``oldest`` and a tree."""
    ring: int
    """Rows of the cache around which positions go, where there are ``oldest`` and a tree."""
    bias: int
    """[B, n, t], added to the scores."""
    bias_sequence_stride: int
    bias_row_stride: int
    out: int
    """[W, h, D], contiguous."""
    scratch: int
    """float32 [threads, attend_floats(D, t)]."""
    factors: int
    """float32 [2]: factor of the scores, and c of c * tanh(score / c), 0: none; address 0: 1 / sqrt(D), and none."""
    sinks: int
    """[h]: score without a value of each query head; address 0: none."""


class Layer(NamedTuple):
    """One layer on its device, attention and MLP or one of them: its weights, and sizes that every forward has.

    H hidden size, h query heads, k KV heads of D dims, m channels of the MLP.
    """

    forward: int
    """Address of the words of a ``Forward``."""
    attends: int
    """1: the attention is run; 0: not, and its words are 0."""
    inputs: int
    """Inputs of qkv: H, or 2 * H."""
    attention_norm: int
    """[H]; address 0: the input of qkv is ``Forward.x``."""
    attention_epsilon: int
    """In multiples of EPSILON_UNIT, as the others."""
    qkv: int
    """[(h + 2k) * D, inputs]; 0 where it is in codes, as the other matrices."""
    qkv_stride: int
    qkv_codes: int
    """Address of the words of its ``Codes``; 0: it is not in codes."""
    qkv_bias: int
    """[(h + 2k) * D], or address 0."""
    q_norm: int
    """[D], or address 0: neither queries nor keys have a norm."""
    k_norm: int
    head_epsilon: int
    o: int
    """[H, h * D]"""
    o_stride: int
    o_codes: int
    query_heads: int
    kv_heads: int
    head_dim: int
    factors: int
    """As in ``Attend``."""
    sinks: int
    cache: int
    """Cache row 0 of the first sequence, from which ``Forward.written_index`` counts."""
    sequence_stride: int
    row_stride: int
    feeds: int
    """1: the MLP is run; 0: not, and its words are 0."""
    mlp_norm: int
    mlp_epsilon: int
    gate_up: int
    """[2 * m, H]"""
    gate_up_stride: int
    gate_up_codes: int
    channels: int
    down: int
    """[H, m]"""
    down_stride: int
    down_codes: int
    following: int = 0
    """Address of the words of the layer that is run behind this one; 0: none."""


class Forward(NamedTuple):
    """Arguments that all layers of a forward have in common; letters as in ``Layer`` and ``Attend``; no gaps."""

    rows: int
    rows_per_sequence: int
    hidden_size: int
    hidden: int
    """[W, H]: the residual before the attention, and the result of the MLP."""
    between: int
    """[W, H]: the result of the attention, which the MLP reads."""
    adds: int
    """1: the residual is added; 0: another device adds it."""
    x: int
    """[W, inputs]: the input of qkv of layers without a norm before the attention."""
    normed: int
    """Scratch [W, H], one for each thread where ``normed_per_thread``."""
    normed_per_thread: int
    inner: int
    """Scratch: [W, h + 2k, D], then [W, h * D]; thereafter [W, 2 * m], then [W, m]."""
    widened: int
    """Scratch for the input of a product as in ``Product``; address 0: it is multiplied as it is."""
    widened_stride: int
    widened_per_thread: int
    values: int
    """As in ``CodedProduct``; address 0: no weight is in codes."""
    values_stride: int
    coded: int
    """Address of the code of the kernel ``coded``, or 0."""
    attend_8_bits: int
    """Address of the code of the kernel ``attend_int8`` or ``attend_float8``, where caches are of 8 bits, or 0."""
    cosines: int
    sines_offset: int
    first_sequence: int
    """The first sequence of the caches that takes part."""
    first_seen: int
    """The first row of its cache that is attended to."""
    written_index: int
    first_written: int
    """The row of its cache that the first row is written to, where there is no ``written_index``."""
    columns: int
    tree_columns: int
    oldest: int
    positions: int
    ring: int
    bias: int
    bias_sequence_stride: int
    bias_row_stride: int
    scratch: int
    """As in ``Attend``."""
