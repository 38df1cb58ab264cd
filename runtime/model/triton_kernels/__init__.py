"""GPU kernels of a transformer layer in Triton; plain products are cuBLAS's.

    launch      the one place from which kernels are launched
    rowwise     RMS norm, sums with a residual and their norm, both inputs of a drafter, gated activation
    heads       norm of queries and keys, rotary embedding, write to the KV cache
    attention   attention over the KV cache in fixed splits, and the merge of the splits
    caches      where new positions are in the KV cache, and the copy of accepted rows
    masks       the packing of a tree's ancestors into words (``runtime.model.mask``)
    sampling    draws of tokens from logits
    trees       ancestors in a draft tree, the walk along accepted nodes, growth and selection of a dynamic tree
    float8      float8_e4m3fn as bytes, on every GPU
    tables      look-up of rows of an embedding table in codes
    codes       values of quantized weights in registers
    products    products with quantized weights, and of rows with the weights of their experts
    experts     the router's choice, rows sorted by expert, and the weighted sum of experts' results
    top         the best of each row of logits with their log-softmax

Elements are float32, bfloat16 or float16; sums are in float32. Whatever a step decides on the device (positions,
lengths, ancestors, rows of an expert) is read on the device, so that no launch depends on it. Splits of the cache and
of a product follow from shapes alone: the same operands give the same bits. Kernels are compiled for a GPU when they
are first launched. The functions take tensors of one device and check their shapes; only ``runtime.model`` calls
them, through ``ops.on_gpu``, so that a machine without a GPU needs no Triton.
"""
