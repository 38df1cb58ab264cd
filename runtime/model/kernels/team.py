"""The team of threads that runs a kernel: libgomp's, whose functions a kernel calls directly."""

from numba.core import types

thread = types.ExternalFunction("omp_get_thread_num", types.int32())
"""Number of this thread in the team."""
threads = types.ExternalFunction("omp_get_num_threads", types.int32())
"""Threads of the team."""
barrier = types.ExternalFunction("GOMP_barrier", types.void())
"""Wait for all threads of the team."""
