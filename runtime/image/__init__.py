"""Check, map and copy the image of a device, and allocate the buffers that the plan counted.

Called by the commands (``verify``), by ``Engine`` before it starts its processes, and by each rank for its own device.
Files are not trusted: an image that is missing, truncated, damaged or of another plan is refused (exit code 4) before a
weight is used. What the weights mean is ``runtime.model``; their format is in ``plans`` (``artifact``, ``slots``).

    verify    images.yaml, header, size and BLAKE3 of each image      slots     an image as named tensors of one memory
    transfer  bytes read by threads, hashed in order, to a GPU        buffers   the planned buffers, allocated at start
    lease     a mapped file that another program must not change
"""
