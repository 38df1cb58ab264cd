"""Kernels of a GPU: whether they are right, how fast they are, and what memory they take."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from gpu_measures.bench import ALONE, Bench, no_waits, say, say_rate, untried
from plans.attention_splits import splits_of
from plans.schema import WeightFormat
from runtime.model import layers, ops
from runtime.model.experts import Experts
from runtime.model.kv_codes import MOST_CODE, decoded, encoded
from runtime.model.layers import Linear
from runtime.model.mask import Mask, words_of
from runtime.model.router import Router
from runtime.model.weights import Coded, product


def _attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Return attention in float32: [B * n, h * D]."""
    keys, values = (x.float().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q.float() @ keys.transpose(2, 3) / q.shape[3] ** 0.5 + bias.float()
    out: Tensor = scores.softmax(-1) @ values
    return out.transpose(1, 2).flatten(0, 1).flatten(1)


@dataclass(frozen=True)
class Attended:
    """Attention of 32 query heads to 8 KV heads of 128: a chain of n rows behind half of a cache, or a chunk in it."""

    qkv: Tensor
    cache: Tensor
    mask: Mask
    bias: Tensor
    """[1, 1, n, rows] of the cache, as the mask has it."""

    @classmethod
    def of(cls, bench: Bench, n: int, rows: int, dtype: torch.dtype) -> "Attended":
        device, start, length = bench.device, 64, rows // 2
        tree = n if n <= start else 0
        written = torch.randn(1, rows, 16, 128, device=device)
        cache = encoded(written, dtype) if dtype in MOST_CODE else written.to(dtype)
        number, column = torch.arange(n, device=device).unsqueeze(1), torch.arange(rows, device=device)
        chain, before = (column >= start - tree) & (column <= start - tree + number), column - start < length
        seen = torch.where(column < start, chain, before if tree else column - start <= length + number)
        mask = Mask(
            positions=(length + number).flatten(), ancestors=words_of(seen[:, start - tree : start]) if tree else None,
            lengths=torch.full((1, 1), length, device=device), appended=0 if tree else n, tree=tree, start=start,
            window=None, part=0, parts=1, splits=splits_of(rows - start, n, 60),
            counters=torch.zeros(8, dtype=torch.int32, device=device),
        )  # fmt: skip
        bias = torch.zeros(n, rows, device=device, dtype=bench.dtype).masked_fill_(~seen, float("-inf"))
        qkv = torch.randn(n, 48, 128, device=device).to(bench.dtype)
        return cls(qkv, cache, mask, bias[None, None])

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v and the bias."""
        seen = (decoded(self.cache, 128) if self.cache.dtype in MOST_CODE else self.cache).transpose(1, 2)
        return self.qkv[:, :32].unsqueeze(0).transpose(1, 2), seen[:, :8], seen[:, 8:], self.bias

    def __call__(self) -> Tensor:
        if ops.is_cpu(self.qkv):
            return layers.attend(*self.operands)
        return layers.attend_by_mask(self.qkv, 32, self.cache, 0, self.mask)


def _peak(bench: Bench, work: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """Return a result, and the bytes that making it took at most, with it."""
    if not bench.gpu:
        return work(), 0
    torch.cuda.reset_peak_memory_stats(bench.device)
    before = torch.cuda.memory_allocated(bench.device)
    result = work()
    return result, torch.cuda.max_memory_allocated(bench.device) - before


def _planned(n: int, splits: int, dtype: torch.dtype) -> int:
    """Return the bytes of the result, and of the splits that are merged."""
    merged = n * 32 * (128 + 1) * 4 * splits if splits > 1 else 0
    return n * 32 * 128 * dtype.itemsize + merged + 4096


def _check_attention(bench: Bench, what: str, attended: Attended, most: float) -> None:
    out, peak = _peak(bench, attended)
    error = (out.float() - _attended(*attended.operands)).abs().max().item()
    say(f"{what}: error against float32", f"< {most}", f"{error:.5f}", error < most)
    if bench.gpu:
        planned = _planned(out.shape[0], attended.mask.splits, bench.dtype)
        say(f"{what}: bytes of temporaries", f"at most {planned}", peak, peak <= planned)
        same = torch.equal(out, attended())
        say(f"{what}: the same bits twice", True, same, same)
    took = bench.ms(attended)
    read = attended.cache.nbytes // 2
    say(f"{what}: ms", "", f"{took:.3f} ({read / took / 1e6:.0f} GB/s of keys and values)")


def attention(bench: Bench) -> None:
    rows = 8192 if bench.gpu else 512
    for n, what in ((1, "plain"), (60, "tree"), (512, "chunk")):
        _check_attention(bench, what, Attended.of(bench, n, rows if n < 512 else 2 * rows, bench.dtype), 0.01)


def float8(bench: Bench) -> None:
    rows = 16384 if bench.gpu else 512
    for dtype, name in ((torch.float8_e4m3fn, "float8"), (torch.int8, "int8")):
        for n, what in ((1, "plain"), (60, "tree")):
            _check_attention(bench, f"{what}, {name}", Attended.of(bench, n, rows, dtype), 0.02)


def experts(bench: Bench) -> None:
    hidden, channels, number, picked = (4096, 1792, 8, 2) if bench.full else (64, 48, 8, 2)
    gate_up = torch.randn(number, 2 * channels, hidden, device=bench.device).to(bench.dtype).mul_(hidden**-0.5)
    down = torch.randn(number, hidden, channels, device=bench.device).to(bench.dtype).mul_(channels**-0.5)
    router = torch.randn(number, hidden, device=bench.device).to(bench.dtype)
    block = Experts(
        router=Router(product=Linear(weight=router.t(), bias=None), picked=picked, normed=True),
        gate_up=gate_up, down=down, group=ALONE,
    )  # fmt: skip
    for rows in (1, 60):
        x = torch.randn(rows, hidden, device=bench.device).to(bench.dtype)
        weights, chosen = block.router(x)
        expected = torch.zeros(rows, hidden, device=bench.device)
        for expert in range(number):
            gate, up = (x.float() @ gate_up[expert].float().t()).chunk(2, 1)
            result = (functional.silu(gate) * up) @ down[expert].float().t()
            expected += result * (weights * (chosen == expert)).sum(1, keepdim=True)
        zeros = torch.zeros_like(x)
        block(x, zeros)
        with no_waits(bench):
            out = block(x, zeros)
        error = ((out.float() - expected).abs().max() / expected.abs().max()).item()
        say(f"{rows} rows: relative error, without a wait", "< 0.03", f"{error:.4f}", error < 0.03)
        took = bench.ms(lambda x=x, zeros=zeros: block(x, zeros))  # type: ignore[misc]
        read = (gate_up.nbytes + down.nbytes) * len(chosen.unique()) / number
        say(f"{rows} rows: ms", "", f"{took:.3f} ({read / took / 1e6:.0f} GB/s of the experts that are picked)")


def products(bench: Bench) -> None:
    _check_parts(bench)
    shapes = ((28672, 4096), (4096, 14336), (128256, 4096)) if bench.gpu else ((512, 256),)
    for outputs, inputs in shapes:
        count = max(2, int(3e8 / (outputs * inputs * 2)) + 1) if bench.gpu else 2  # more than its caches hold
        weights = [torch.randn(outputs, inputs, device=bench.device).to(bench.dtype) for _ in range(count)]
        coded = [_int4(bench, outputs, inputs) for _ in range(4 * count if bench.gpu else 2)]
        nbytes = coded[0].codes.nbytes + coded[0].scales.nbytes
        for rows in (1, 10, 60):
            x = torch.randn(rows, inputs, device=bench.device).to(bench.dtype)
            turn = iter(range(10**9))

            def plain(x: Tensor = x, turn: Iterator[int] = turn, listed: list[Tensor] = weights) -> Tensor:
                return ops.product(x, listed[next(turn) % len(listed)].t())

            def of_codes(x: Tensor = x, turn: Iterator[int] = turn, listed: list[Coded] = coded) -> Tensor:
                return product(x, listed[next(turn) % len(listed)])

            rate = weights[0].nbytes / bench.ms(plain, 50) / 1e6
            say_rate(bench, f"{outputs} x {inputs}, {rows} rows: GB/s", rate)
            what = f"{outputs} x {inputs}, {rows} rows, int4: GB/s"
            if bench.gpu:
                say(what, "", f"{nbytes / bench.ms(of_codes, 50) / 1e6:.0f}")
            else:
                untried(what, "its kernel would be compiled first")


def _int4(bench: Bench, outputs: int, inputs: int) -> Coded:
    """Return random codes of int4 in groups of 128."""
    form = WeightFormat(code="int4", scale="bfloat16", group=128, zeros=False)
    codes = torch.randint(256, (outputs, inputs // 2), dtype=torch.uint8, device=bench.device)
    scales = torch.rand(outputs, inputs // 128, device=bench.device).to(torch.bfloat16)
    counters = ops.counters(bench.device) if bench.gpu else None
    return Coded(form=form, codes=codes, scales=scales, zeros=None, inputs=inputs, counters=counters)


def _check_parts(bench: Bench) -> None:
    """Compare products whose columns are divided with those of their values, and with themselves, many times: which
    program adds the parts up is another each time.
    """
    outputs, inputs = (4096, 14336) if bench.gpu else (64, 256)
    weight = _int4(bench, outputs, inputs)
    column = torch.arange(inputs, device=bench.device)
    byte = weight.codes[:, 16 * (column // 32) + column % 16]
    codes = torch.where(column % 32 < 16, byte & 15, byte >> 4)
    values = (codes.float() - 8) * weight.scales.float().repeat_interleave(128, 1)
    for rows in (1, 60):
        x = torch.randn(rows, inputs, device=bench.device).to(bench.dtype)
        expected, out = x.float() @ values.t(), product(x, weight)
        error = ((out.float() - expected).abs().max() / expected.abs().max()).item()
        same = all(torch.equal(product(x, weight), out) for _ in range(200 if bench.gpu else 2))
        found = f"{error:.4f}, {'the same' if same else 'other'} bits"
        what = f"{rows} rows, int4, divided columns: relative error, repeated"
        say(what, "< 0.02, the same bits", found, error < 0.02 and same)
