"""What the GPUs of an inventory cannot run is refused before anything is solved."""

import dataclasses

import pytest

from planner.errors import InputError
from planner.formulations import Formulations
from plans.check_inputs import check_attention
from plans.schema import DType
from tests.planner.instances import demo, inventory_of, options_of

DEVICES = {
    "gpu": {"id": "g", "type": "a100-80g"},
    "cpu": {"id": "c", "type": "cpu", "memory": "8 GiB", "bandwidth": "40 GB/s"},
}


@pytest.mark.parametrize(
    ("head_dim", "dtype", "multiple"), [(20, "bfloat16", 8), (20, "float32", None), (6, "float32", 4)]
)
def test_heads_that_attention_of_a_gpu_does_not_take_are_refused(
    head_dim: int, dtype: DType, multiple: int | None
) -> None:
    base, draft = demo("eagle3")
    options = options_of(base, draft, 256, dtype)
    (layers,) = base.model.layers
    odd = dataclasses.replace(layers, attention=dataclasses.replace(layers.attention, head_dim=head_dim))
    base = dataclasses.replace(base, model=dataclasses.replace(base.model, layers=(odd,)))
    for kind, listed in DEVICES.items():
        inventory = inventory_of({"hosts": [{"name": "h", "devices": [listed]}]}, dtype)
        if kind == "cpu" or multiple is None:
            assert not [*check_attention(options, inventory, base.model, None)]
            continue
        with pytest.raises(InputError) as caught:
            Formulations().of(base, draft, inventory, options)
        assert str(caught.value) == (
            f"model.layers[0].attention.head_dim: found {head_dim}, "
            f"expected a multiple of {multiple}, as attention on GPU g takes in {dtype}"
        )
