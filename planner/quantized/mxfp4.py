"""MXFP4, in which gpt-oss is published: matrices of all experts in two tensors, groups of 32 with an exponent."""

from dataclasses import dataclass

from planner.quantized.layouts import Mxfp4
from planner.quantized.records import Expected, ScaleDType, Stored
from planner.quantized.settings import Names, Settings
from plans.quantized import BLOCK
from plans.schema import WeightFormat

OCTETS = frozenset({"U8"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Mxfp4Recipe:
    """Experts have codes, and nothing else has."""

    skipped: Names
    """Layers whose experts are plain are among them."""

    def stored(self, module: str, out: int, columns: int, scale_dtype: ScaleDType) -> Stored | None:
        """Return None: only the packed experts are quantized."""
        return None

    def expert(self, tensor: str, shape: tuple[int, int, int], expert: int, first: int, step: int) -> Stored | None:
        """Return how one matrix of an expert is stored, every ``step``-th row from ``first`` on; None: it is plain.

        ``tensor``, ``shape``: of the experts' weights [E, in, out] where they are not quantized.
        """
        if self.skipped.have(tensor.rpartition(".")[0]):
            return None
        count, columns, rows = shape
        groups = columns // BLOCK
        return Stored(
            module=f"{tensor}[{expert}, {first}::{step}]",
            out=len(range(first, rows, step)),
            columns=columns,
            form=WeightFormat(code="float4_e2m1", group=BLOCK, zeros=False, scale="float8_e8m0"),
            layout=Mxfp4(expert=expert, first=first, step=step),
            tensors={
                "codes": Expected(name=f"{tensor}_blocks", dtypes=OCTETS, shapes=((count, rows, groups, BLOCK // 2),)),
                "scales": Expected(name=f"{tensor}_scales", dtypes=OCTETS, shapes=((count, rows, groups),)),
            },
            ignored={},
        )


def read(settings: Settings) -> Mxfp4Recipe:
    """Read the settings of MXFP4; raise ConfigError. All that is not an expert is plain, listed or not."""
    skipped = settings.names("modules_to_not_convert")
    settings.finish("quant_method", "dequantize")
    return Mxfp4Recipe(skipped=Names.read(*skipped))
