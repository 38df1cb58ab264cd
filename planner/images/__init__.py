"""Compile a plan and its checkpoints into one safetensors image per device, and trace an image's bytes to their source.

Called by the commands ``build``, ``compile`` and ``show --slot``; planning itself uses ``layout`` alone, and only these
modules read weights: ``compile``, ``stream``, ``blocks`` and ``pipeline``.

    inputs       plan and checkpoints belong together          compile   the whole command, and its report
    layout       the slots of an image: offsets and sources    stream    one walk over all source rows
    pieces       a slot's parts, found in the checkpoints      pipeline  threads and buffers that read, hash and write
    reuse        images that are there already                 reader    bytes of checkpoints, unchanged since planned
    publish      lock, temporaries, and the order of renames   casts     one float dtype to another
    provenance   a slot, back to its sources                   blocks    rows of a tensor that are read at once

The format of an image and of ``images.yaml``, which the runtime reads too, is in ``plans`` (``artifact``, ``slots``,
``safetensors_header``). Verifying and mapping images is ``runtime.image``.
"""
