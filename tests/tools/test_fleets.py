"""1000 GPUs of four types divided into replicas."""

from bench_fleets import INSTANCES, line_of


def test_a_thousand_gpus_are_divided_into_the_smallest_replicas_that_fit() -> None:
    """The weights of 70B take 141 GB: two GPUs of 80 GB, or four of 48; of 8 on a host none is left over.

    63 hosts have 80 GB, 62 have 48 GB: 63 * 4 + 62 * 2 replicas.
    """
    (instance,) = (instance for instance in INSTANCES if instance.name == "70b")
    _, replicas, _, bound, *_ = line_of(instance)
    assert (replicas, bound) == ("376 on 1000", "+0.00%")
