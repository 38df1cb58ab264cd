"""Everything besides weights that lies in a device's memory: the table that is counted offline and allocated at start.

Two kinds of entries. Buffers outlive an operation: the runtime allocates each under its name before the first token
(``runtime.image.buffers``). Entries named ``scratch.*`` bound the temporaries of operations and are never allocated as
such; each names the code that it bounds, and tests/contract/test_memory.py measures that code. All sizes are functions
of the plan alone, and none shrinks when a share grows.

Letters: B batch, C prefill chunk, N tree nodes with the root, A most nodes kept by one step, R rows of one forward (a
chunk of one prompt, or the trees of all sequences), T rows of a KV cache, H hidden size, D head dim, k KV heads of the
device, h its query heads, V' its rows of a vocabulary table, m members of a subgroup.

Here are the buffers of each part of a plan, those of layers in ``plans.layer_buffers``, and of KV in ``plans.caches``.
"""

from collections.abc import Callable
from dataclasses import replace

from plans.buffer import TERMS, Buffer, Term
from plans.caches import cache_shape, caches_of, stored_shape
from plans.graphs import POOL, divides_heads
from plans.kv import KvShare, kv_share
from plans.layer_buffers import Layers, coded_products, coded_table, layer_buffers, values_of_codes
from plans.quantized import draft_embed_format, draft_head_format
from plans.rotary import tables
from plans.schema import Draft, Model, Options, Plan
from plans.shared_memory import outbox_bytes, sharing
from plans.step import (
    BEST_WORDS,
    accept_rows,
    candidate_words,
    carry_planes,
    draft_rows,
    draft_step_rows,
    draft_tree_rows,
    forward_rows,
    message_words,
    pool_rows,
    prefill_features,
    read_rows,
    step_features,
    step_options,
    steps,
    tree_rows,
    verify_rows,
)

OUTBOX = "outbox"
"""Name of the buffer that lies in the memory which ranks share."""


def stage_buffers(
    model: Model, draft: Draft | None, options: Options, *, share: KvShare, mlp_units: int, group_size: int, gpu: bool
) -> tuple[Buffer, ...]:
    """Return the buffers of a device with layers; the shares are the largest over its layers."""
    rows, hidden = forward_rows(options), model.hidden_size
    attentions = tuple({layers.attention.window: layers.attention for layers in model.layers}.values())
    mlps = tuple(layers.mlp for layers in model.layers)
    common = Layers(
        options=options,
        prefix="",
        hidden=hidden,
        rows=rows,
        step_rows=verify_rows(options),
        group_size=group_size,
        gpu=gpu,
        tables=len(tables(model)),
        widens=bool(model.norm_offset),
        scales_queries=model.query_scaling is not None,
    )
    return (
        *_rank_buffers(options),
        _carry("carry", model, draft, options),
        *layer_buffers(common, attentions, mlps, share=share, mlp_units=mlp_units, tree=tree_rows(options)),
        *coded_products(model, options, share, mlp_units),
    )


def embed_buffers(model: Model, options: Options, *, group_size: int, hop: bool, leads: bool) -> tuple[Buffer, ...]:
    """Return the buffers of a device of the embedding's group.

    ``hop``: the first stage is on other devices; without one the rows are looked up into what the first layer works on,
    and there are no buffers. ``leads``: the device sends the hidden states.
    """
    if not hop:
        return ()
    rows, hidden, dtype = forward_rows(options), model.hidden_size, options.dtype
    reduced = hidden if group_size > 1 else 0
    sent = (Buffer(name="embed.hidden", term="comm", dtype=dtype, shape=(rows, hidden)),) if leads else ()
    return (
        *_rank_buffers(options),
        *sent,
        # looked-up rows, and those without the rows of others: model.blocks.Embed
        Buffer(name="embed.scratch.rows", term="buffers", dtype=dtype, shape=(2, rows, hidden)),
        *values_of_codes("embed.", model.embed_format, rows, hidden),
        # the copy of a collective's library, or of a staged message: comm.groups.Group.all_reduce
        Buffer(name="embed.scratch.reduce", term="comm", dtype=dtype, shape=(rows, reduced)),
    )


def lm_head_buffers(
    model: Model,
    draft: Draft | None,
    options: Options,
    *,
    rows: int,
    group_size: int,
    receives: bool,
    leads: bool,
    gpu: bool,
) -> tuple[Buffer, ...]:
    """Return the buffers of a device with ``rows`` rows of the lm_head.

    ``receives``: the device is sent the hidden states and features of the last stage, as it is not that stage's leader
    and the stage is on other devices. ``leads``: it sends the features to the drafter.
    """
    nodes, forward, hidden = verify_rows(options), forward_rows(options), model.hidden_size
    received = (*_rank_buffers(options), _carry("head.carry", model, draft, options)) if receives else ()
    sent = (_feature_buffer(model, draft, options),) if draft is not None and leads else ()
    return (
        *received,
        *sent,
        *_logits(options, nodes, rows, gpu),
        # output of the final norm, and its float32 temporary: model.base.BaseLmHead
        Buffer(name="scratch.normed", term="buffers", dtype="float32", shape=(2, forward, hidden)),
        *coded_table("", model.head_format, hidden, nodes),
        # best logit and token of each row, of this device and of all: model.blocks.LmHead.best, model.draw.draw
        Buffer(name="scratch.best", term="comm", dtype="float64", shape=(1 + group_size, nodes, BEST_WORDS)),
    )


def draft_buffers(
    model: Model,
    draft: Draft,
    options: Options,
    *,
    share: KvShare,
    mlp_units: int,
    head_rows: int,
    group_size: int,
    gpu: bool,
) -> tuple[Buffer, ...]:
    """Return the buffers of a device with a share of the drafter, ``head_rows`` of the lm_head among it."""
    assert options.tree is not None, "a draft comes with a tree"
    rows, beam, hidden = draft_rows(draft, options), read_rows(draft, options), draft.hidden_size
    words, pool = candidate_words(draft, options), pool_rows(options)
    common = Layers(
        options=options,
        prefix="draft.",
        hidden=hidden,
        rows=rows,
        step_rows=draft_step_rows(draft, options),
        group_size=group_size,
        gpu=gpu,
    )
    tree, normed = draft_tree_rows(draft, options), 0 if draft.fc_norm is None else draft.fc_width
    seen = cache_shape(options, draft.attention, share, 1, tree)[2]
    return (
        _message_buffer(options),
        _feature_buffer(model, draft, options),
        # candidates of each row, of this device and of all: model.blocks.LmHead.top
        Buffer(name="draft.scratch.candidates", term="comm", dtype="float64", shape=(1 + group_size, words)),
        *(
            (Buffer(name="draft.beam", term="buffers", dtype=options.dtype, shape=(beam, seen)),)
            if common.has_masks(share)
            else ()
        ),
        # tokens, scores and parents of the pool, their concatenation, and the sort of the scores:
        # decode.tree_growth.Dynamic.finish, decode.tree.select
        Buffer(name="draft.scratch.pool", term="buffers", dtype="int64", shape=(12, pool)),
        # logits, and on a CPU their copy in float32, and its exponentials: model.blocks.LmHead.top
        Buffer(
            name="draft.scratch.head",
            term="buffers",
            dtype=options.dtype if gpu else "float32",
            shape=(1 if gpu else 3, beam, head_rows),
        ),
        *coded_table("draft.", draft_head_format(model, draft), hidden, beam),
        # looked-up rows, whole whatever rows of the table the device has: model.blocks.Embed
        Buffer(name="draft.scratch.embed", term="buffers", dtype=options.dtype, shape=(rows, hidden)),
        *values_of_codes("draft.", draft_embed_format(model, draft), rows, hidden),
        # fc's input and output, or the two normed halves side by side: decode.head_layers, model.blocks.Eagle3Layer
        Buffer(name="draft.scratch.input", term="buffers", dtype=options.dtype, shape=(4, rows, hidden)),
        # the normed target feature, of each layer and side by side, and the norm's float32: decode.head_layers
        Buffer(name="draft.scratch.features", term="buffers", dtype="float32", shape=(3, rows, normed)),
        *layer_buffers(common, (draft.attention,), (draft.mlp,), share=share, mlp_units=mlp_units, tree=tree),
    )


def device_buffers(plan: Plan, device_id: str) -> tuple[Buffer, ...]:
    """Return all buffers of one device of a plan; those that several parts need (``message``, …) are there once."""
    if plan.device(device_id).kind == "cpu" or divides_heads(plan):
        return _parts_of(plan, device_id)
    return with_graph_pool(lambda options: _parts_of(replace(plan, options=options), device_id), plan.options)


def with_graph_pool(buffers_of: Callable[[Options], tuple[Buffer, ...]], options: Options) -> tuple[Buffer, ...]:
    """Return buffers and the pool of the captured steps of a GPU: the temporaries of runtime.decode.graphs.

    ``buffers_of``: all buffers of a device, or of one part of it, by options. The pool of a device is at most the sum
    of those of its parts.
    """
    of_steps = buffers_of(replace(options, prefill_chunk=1))
    temporaries = sum(buffer.nbytes for buffer in of_steps if buffer.scratch)
    return *buffers_of(options), Buffer(name=POOL, term="buffers", dtype="uint8", shape=(temporaries,))


def _logits(options: Options, nodes: int, rows: int, gpu: bool) -> tuple[Buffer, ...]:
    """Return the temporaries of choosing tokens by logits: the kernels of a GPU read these and write no others."""
    if gpu:
        return (Buffer(name="scratch.head", term="buffers", dtype=options.dtype, shape=(nodes, rows)),)
    return (
        # logits, and their copy in float32: model.blocks.LmHead.best, LmHead.draw
        Buffer(name="scratch.head", term="buffers", dtype="float32", shape=(2, nodes, rows)),
        # sampling noise of the A positions that a step may add, and 6 temporaries of making it for one of them:
        # model.draw.exponential
        Buffer(name="scratch.noise", term="buffers", dtype="float64", shape=(6 + accept_rows(options), rows)),
    )


def _parts_of(plan: Plan, device_id: str) -> tuple[Buffer, ...]:
    parts = (
        *_stage_of(plan, device_id),
        *_embed_of(plan, device_id),
        *_head_of(plan, device_id),
        *_draft_of(plan, device_id),
        *_outbox_of(plan, device_id),
    )
    table: dict[str, Buffer] = {}
    for buffer in parts:
        assert table.setdefault(buffer.name, buffer) == buffer, f"two buffers {buffer.name} that differ"
    return tuple(table.values())


def device_terms(plan: Plan, device_id: str) -> dict[Term, int]:
    """Return the bytes of one device of a plan, term by term."""
    buffers = device_buffers(plan, device_id)
    return {term: sum(buffer.nbytes for buffer in buffers if buffer.term == term) for term in TERMS}


def _rank_buffers(options: Options) -> tuple[Buffer, ...]:
    """Return what every part of the base model has: a prompt's chunk, indices of rows, and the message of the step."""
    return (
        Buffer(name="chunk", term="buffers", dtype="int64", shape=(options.prefill_chunk,)),
        # token ids, positions and cache rows of a forward: model.blocks.Embed, model.base, model.kvcache
        Buffer(name="scratch.index", term="buffers", dtype="int64", shape=(4, forward_rows(options))),
        _message_buffer(options),
    )


def _message_buffer(options: Options) -> Buffer:
    """Return the buffer of the step message, which every device has (``runtime.decode.messages.Channel``)."""
    return Buffer(name="message", term="comm", dtype="int64", shape=(message_words(options),))


def _carry(name: str, model: Model, draft: Draft | None, options: Options) -> Buffer:
    """Return the buffer of the hidden states and the captured features (``runtime.model.base.Carry``)."""
    shape = (carry_planes(draft), forward_rows(options), model.hidden_size)
    return Buffer(name=name, term="buffers", dtype=options.dtype, shape=shape)


def _feature_buffer(model: Model, draft: Draft, options: Options) -> Buffer:
    """Return the buffer of the message to the drafter: of a step or of a prefill chunk, whichever is longer."""
    sizes = (step_options(options, sequences, tree) for sequences, tree in steps(options))
    layouts = *(step_features(model, draft, size) for size in sizes), prefill_features(model, draft, options)
    return Buffer(name="features", term="comm", dtype="uint8", shape=(max(layout.nbytes for layout in layouts),))


def _stage_of(plan: Plan, device_id: str) -> tuple[Buffer, ...]:
    stage = next((stage for stage in plan.stages if device_id in stage.devices), None)
    if stage is None:
        return ()
    member, options = stage.devices.index(device_id), plan.options
    shares = [kv_share(stage, run.kv_heads, member) for run in stage.runs]
    buffers = []
    for cached in caches_of(plan.model, stage):
        share = kv_share(stage, cached.kv_heads, member)
        shape = stored_shape(options, cached.attention, share, len(cached.layers), tree_rows(options))
        buffers.append(Buffer(name=cached.name, term="kv", dtype=options.kv_dtype, shape=shape))
    buffers += stage_buffers(
        plan.model,
        plan.draft,
        options,
        share=max(shares, key=lambda share: share.heads),
        mlp_units=max(run.mlp_units[member] for run in stage.runs),
        group_size=len(stage.devices),
        gpu=plan.device(device_id).kind == "cuda",
    )
    return tuple(buffers)


def _embed_of(plan: Plan, device_id: str) -> tuple[Buffer, ...]:
    devices = plan.embed.devices
    if device_id not in devices:
        return ()
    return embed_buffers(
        plan.model,
        plan.options,
        group_size=len(devices),
        hop=devices != plan.stages[0].devices,
        leads=device_id == devices[0],
    )


def _head_of(plan: Plan, device_id: str) -> tuple[Buffer, ...]:
    devices, last = plan.head.devices, plan.stages[-1].devices
    if device_id not in devices:
        return ()
    return lm_head_buffers(
        plan.model,
        plan.draft,
        plan.options,
        rows=plan.head.rows[devices.index(device_id)],
        group_size=len(devices),
        receives=devices != last and device_id != last[0],
        leads=device_id == devices[0],
        gpu=plan.device(device_id).kind == "cuda",
    )


def _draft_of(plan: Plan, device_id: str) -> tuple[Buffer, ...]:
    placement, draft, options = plan.draft_placement, plan.draft, plan.options
    if placement is None or draft is None or device_id not in placement.devices:
        return ()
    member = placement.devices.index(device_id)
    share = kv_share(placement, placement.kv_heads, member)
    shape = stored_shape(options, draft.attention, share, draft.num_layers, draft_tree_rows(draft, options))
    return (
        Buffer(name="draft.kv", term="draft_kv", dtype=options.kv_dtype, shape=shape),
        *draft_buffers(
            plan.model,
            draft,
            options,
            share=share,
            mlp_units=placement.mlp_units[member],
            head_rows=(placement.head_rows or plan.head.rows)[member],
            group_size=len(placement.devices),
            gpu=plan.device(device_id).kind == "cuda",
        ),
    )


def _outbox_of(plan: Plan, device_id: str) -> tuple[Buffer, ...]:
    """Return the buffer of messages through shared memory; that of a GPU's process is not in the GPU's memory."""
    ranks = sharing(plan, device_id) if plan.device(device_id).kind == "cpu" else ()
    if not ranks:
        return ()
    return (Buffer(name=OUTBOX, term="comm", dtype="uint8", shape=(outbox_bytes(len(ranks)),)),)
