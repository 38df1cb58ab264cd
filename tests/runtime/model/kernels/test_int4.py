"""Products with int4 weights: four blocks at once by AVX-512 VNNI, two elsewhere, with the same bits."""

import os
import subprocess
import sys

import pytest

from runtime.model.kernels import processor
from tests.runtime.model.kernels.test_processor import AVX2

PROGRAM = """if True:
    import hashlib
    import torch
    from plans.schema import WeightFormat
    from runtime.model import weights
    digest = hashlib.sha256()
    for blocks in range(1, 12):
        for zeros in (False, True):
            generator = torch.Generator().manual_seed(blocks)
            def whole(*shape, high=256):
                return torch.randint(0, high, shape, dtype=torch.uint8, generator=generator)
            weight = weights.Coded(
                form=WeightFormat(code="int4", group=32, zeros=zeros, scale="float32"), codes=whole(7, 16 * blocks),
                scales=torch.rand(7, blocks, generator=generator), zeros=whole(7, blocks, high=16) if zeros else None,
                inputs=32 * blocks,
            )
            x = torch.randn(6, 32 * blocks, generator=generator) * torch.logspace(-3, 3, 32 * blocks)
            for rows in range(1, 7):
                digest.update(weights.product(x[:rows], weight).numpy().tobytes())
    print(digest.hexdigest())
"""


@pytest.mark.skipif(not processor.has("avx512vnni"), reason="compares AVX-512 VNNI, which the processor has not")
def test_other_processors_have_the_same_bits() -> None:
    """The sums of a block are exact, and floats are added in one order."""
    elsewhere = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": AVX2}
    digests = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM], env=os.environ | names, capture_output=True, text=True, check=True
        ).stdout
        for names in ({}, elsewhere)
    ]
    assert digests[0] == digests[1]
