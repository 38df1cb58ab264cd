"""What gpu_check tries on a GPU; ``tools/gpu_parts.py`` runs it part by part, on a CPU as far as it needs no GPU.

bench       the device, plans and random weights for it, and the rows that a part prints
kernels     attention, experts and products: right, how fast, in planned memory
decoding    steps, launches, memory, graphs, tokens
system      the machine, loading, collectives, devices, memory errors
"""
