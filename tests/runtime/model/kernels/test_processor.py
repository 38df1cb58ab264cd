"""Kernels for other processors than this one, and the choice of instructions."""

import os
import subprocess
import sys

import pytest
import torch

from runtime.model.kernels import code, processor

AVX2 = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe"
PROGRAM = """if True:
    import torch
    from runtime.model import ops
    from runtime.model.kernels import processor
    x, weight = (torch.randn(n, 75, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (13, 35))
    together = ops.product(x, weight.t())
    assert (together.double() - x.double() @ weight.double().T).abs().max() < 0.2
    for rows in range(1, 13):
        assert torch.equal(ops.product(x[:rows], weight.t()), together[:rows])
    qkv, cache = torch.randn(21, 8, 72).bfloat16(), torch.randn(1, 90, 4, 72).bfloat16()
    bias = (torch.arange(90) <= 69 + torch.arange(21)[:, None]).bfloat16().log()[None, None]
    rotary = torch.stack([torch.ones(21, 1, 72), torch.zeros(21, 1, 72)]).bfloat16()  # by an angle of 0
    attended = ops.attend(qkv.clone(), 4, cache, rotary, bias, 0, 0, slice(69, 90), 0)
    keys, values = cache.double().transpose(1, 2).split(2, 1)
    query = qkv[:, :4].double().transpose(0, 1)[None]
    attention = torch.nn.functional.scaled_dot_product_attention
    whole = attention(query, keys, values, attn_mask=bias.double(), enable_gqa=True)[0].transpose(0, 1).flatten(1)
    assert (attended.double() - whole).abs().max() < 0.02
    for row in range(21):
        own, written = slice(row, row + 1), slice(69 + row, 70 + row)
        alone = ops.attend(qkv[own].clone(), 4, cache, rotary[:, own], bias[:, :, own], 0, 0, written, 0)
        assert torch.equal(alone, attended[own])
    print(processor.instructions(torch.bfloat16), processor.lanes())
"""


@pytest.mark.skipif(not processor.multiplies_pairs(torch.bfloat16), reason="the processor has no AVX-512 BF16")
def test_a_processor_without_amx_multiplies_pairs() -> None:
    """Also this one, where Numba is told that it has none."""
    features = ",".join(feature for feature in processor.target().split(" ")[1].split(",") if "amx" not in feature)
    environment = os.environ | {"NUMBA_CPU_FEATURES": features}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("AVX-512 BF16 16\n", 0), done.stderr


def test_tiles_that_the_system_refuses_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that uses tiles is not loaded then: its name has what compiles it."""
    used = processor.multiplies_tiles(torch.bfloat16)
    assert f"amx={used}" in code.compiler()
    assert not any(processor.multiplies_tiles(dtype) for dtype in (torch.float16, torch.float32))
    monkeypatch.setattr(processor, "_may_use_tiles", lambda: False)
    monkeypatch.setattr(code, "multiplies_tiles", processor.multiplies_tiles.__wrapped__)
    assert "amx=False" in code.compiler()


@pytest.mark.skipif(not processor.has("avx2", "fma", "f16c"), reason="compiles for AVX2, which the processor has not")
def test_a_processor_without_avx512_multiplies_with_avx2() -> None:
    """Numba compiles for the processor that is named: bfloat16 is converted to float32, and rows keep their bits."""
    environment = os.environ | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": AVX2}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("AVX2 8\n", 0), done.stderr


def test_instructions_follow_from_the_processor() -> None:
    native = processor.has("avx512bf16", "avx512bw")
    assert processor.multiplies_pairs(torch.bfloat16) == native
    assert not processor.multiplies_pairs(torch.float16)
    assert not processor.multiplies_pairs(torch.float32)
    assert (processor.instructions(torch.bfloat16) in ("AVX-512 BF16", "AMX")) == native
    assert (processor.instructions(torch.bfloat16) == "AMX") == processor.multiplies_tiles(torch.bfloat16)
    assert processor.target().count(" ") == 1
