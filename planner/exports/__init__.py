"""Write a plan as the nearest arguments of another program, and refuse where it would place the model otherwise.

Each program has a module with ``export(plan)``, which returns text: comments on what the program cannot express, and
its arguments. What decides whether a plan can be exported is where each layer and each share of it lies; tables and
EAGLE head lie where the program puts them, which a comment says. The options are those that the programs document:

    vllm        ``vllm serve``: docs.vllm.ai, Engine Arguments and EAGLE Draft Models; ``vllm/envs.py`` for the layers
    accelerate  ``device_map`` and ``max_memory``: huggingface.co/docs/accelerate, Big Model Inference
    llama_cpp   ``llama-server``: ``docs/multi-gpu.md`` and ``tools/server/README.md`` of ggml-org/llama.cpp
    exllamav3   ``exllamav3/model_init.py`` of turboderp-org/exllamav3, whose options its examples and servers share
    placement   questions about a plan that several programs ask

Called by the command ``show``.
"""
