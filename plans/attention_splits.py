"""Splits of a KV cache that a GPU's attention goes through at once, and merges: as many as follow from the plan alone.

A step has the same number of them for a row alone and for the rows of trees, however many sequences run and however
long they are. So attention gives a row the same sums with a draft and without one, alone and beside others.
"""

MOST_SPLITS = 16
SPLIT_ROWS = 256
"""Least cache rows of a split."""
PARTIAL_ROWS = 4096
"""Most rows of partial results, of all splits together: with 32 heads of 128, 68 MB in float32."""


def step_splits(cache_rows: int, step_rows: int) -> int:
    """Return the splits of a cache of so many rows of a sequence; ``step_rows``: most rows of any step of the plan."""
    return max(1, min(MOST_SPLITS, PARTIAL_ROWS // step_rows, -(-cache_rows // SPLIT_ROWS)))


def splits_of(cache_rows: int, rows: int, step_rows: int) -> int:
    """Return the splits for ``rows`` rows of a forward: of a prompt's chunk as many as the buffer of a step has."""
    splits = step_splits(cache_rows, step_rows)
    return splits if rows <= step_rows else max(1, splits * step_rows // rows)


def partial_rows(cache_rows: int, step_rows: int) -> int:
    """Return the rows of partial results that are in memory at once; 0 of a cache that is one split."""
    splits = step_splits(cache_rows, step_rows)
    return splits * step_rows if splits > 1 else 0
