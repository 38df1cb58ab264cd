"""The contract between planner and runtime: records of a plan, its text, and every size that both must agree on.

What lives here: ``schema`` (records), ``codec`` (canonical YAML), ``check`` and ``check_inputs`` (invariants),
``diff``, ``slots`` and ``weights`` (content of an image), ``buffers`` (memory beside it), ``step`` (rows and messages
of a step), ``kv`` and ``ranges`` (shares of KV heads as rows and columns), ``dtypes``, ``artifact`` (``images.yaml``),
``safetensors_header`` and ``strict_json`` (distrustful parsing). FORMAT.md documents the files field by field, and the
directories beside it are committed plans.

Three modules are no contract; they are shared by the commands of both packages, which may not import each other:
``console`` (refusals and verbosity), ``process`` (start and exit) and ``paging`` (hints on files). ``format`` formats
figures for people. What does not live here: prices and the solver (planner), tensors and torch (runtime). The package
imports the standard library and yaml only; planner and runtime import it and never each other.
"""
