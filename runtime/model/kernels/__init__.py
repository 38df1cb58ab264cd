"""CPU kernels of one transformer layer, compiled by Numba for the processor of the machine.

Torch reads 16-bit weights at less than half of the memory bandwidth on a CPU that has no instructions for them, is slow
for products of few rows, and takes longer to start an operation than a small model needs to run it. Here one kernel is
one step of a layer, and all threads of libgomp's team (the threads that torch has already started) share its results.

    arguments     the arguments of each kernel by name, in one table that the caller and the kernel both unpack
    elements      intrinsics: loads, stores and conversions of float32, bfloat16 and float16 elements; exp
    inner_loops   the vectorised inner loops, written as LLVM IR: dot products and weighted sums of rows
    subroutines   functions that only kernels call, compiled within them
    products      product with a weight matrix; grouped product with one weight matrix per expert
    multiply      how many rows of x and of a weight are multiplied at once, by the number of vector registers
    tiles         intrinsics of AMX: tiles of the processor
    multiply_tiles  products of bfloat16 by AMX
    multiply_panels  products of many rows by vectors of float32, of AVX-512 or AVX2
    rowwise       RMS norm, gated activation
    logits        highest logits, top-k with log-softmax
    attention     rotary embedding, write to the KV cache, attention
    coded         product with a weight in codes
    coded_loops   their inner loops
    coded_tiles   products with codes of floats, and of int4 with zero points, by AMX
    tiles_of_codes  their codes as bfloat16
    decoding      codes as float32
    int4          products with codes of int4, as integers
    int8          products with codes of int8 of one scale for each output, as integers
    int8_tiles    those of more rows by AMX
    layer         a whole layer as one kernel
    team          libgomp's functions that a kernel calls: number of this thread, of all threads, barrier
    processor     the processor's vector instructions, which decide how elements are multiplied
    code          machine code on disk: loaded by LLVM alone, compiled where it is not there
    compiled      compilation for a dtype by Numba
    cache_owner   refusal of a cache that another user can write

Elements are float32, bfloat16 (as uint16) or float16 (as int16) and are converted to float32 for all arithmetic; where
the processor has AVX-512 BF16, products and scores multiply pairs of bfloat16 and add them up to float32; where it has
AMX, products multiply tiles of them. Every result
is summed in an order that depends neither on the number of rows or threads nor on other results: a row of a tree
gets the same bits as the same row alone.

A kernel takes one pointer. Its type carries the dtype of the elements; it points to int64 words, the kernel's
arguments: addresses, strides in bytes, and counts. A kernel checks none of them, so only ``runtime.model.ops``, which
takes tensors and knows their shapes, calls kernels. No torch operation and no rule of a model lives here.
"""
