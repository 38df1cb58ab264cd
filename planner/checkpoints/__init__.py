"""Read checkpoints as they are given: ``config.json``, the index, and the headers of safetensors files.

Called by ``families``, which says what the tensors mean, and by ``images``, which reads their bytes. Nothing here
knows a model, and no byte of a tensor is read, except by ``pickle_to_safetensors``, a program of its own. Files are not
trusted: a malformed one raises CheckpointError (exit code 2), at a bounded cost of time and memory.

    checkpoint  config, index and headers of a directory    pickle_to_safetensors  converts an EAGLE head's pickle
    header      position of each tensor of one file         summary                tensors by block, for ``scan``
    formats     what is not read here, by its name          hub                    the cache of Hugging Face

The rules of a header are in ``plans.safetensors_header``, which the runtime applies too.
"""
