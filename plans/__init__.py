"""The contract between planner and runtime: records of a plan, its text, and every size that both must agree on.

    schema     records of a plan, every field with its unit      slots         slot table of an image
    codec      canonical YAML of records, and its digest         slot_records  the records of that table
    share_slots   slots of a share of one block               slot_bytes    bytes of slots, with fillers
    layer_buffers  those of layers; caches: KV caches         buffer        one entry of the table of buffers
    check      invariants of the placement in a plan             weights       tensor parts on each device, moved bytes
    check_inputs  those of inputs, options and inventory         buffers       memory beside the weights
    check_model   those of model and drafter                     violations    what is found, and how it is shown
    check_proof   that of the proof
    diff       two plans compared                                step          rows and messages of one step
    acceptance how often the base chooses what is drafted
    artifact   images.yaml, constants of an image                kv, ranges    shares of KV heads as rows and columns
    safetensors_header, strict_json, strict_yaml  parsing of untrusted files
    dtypes     bytes of values, names in a header             cpu_times     fixed times that a CPU has by default

FORMAT.md documents the files field by field; the directories beside it are committed plans.

No contract, but shared by the commands of both packages, which never import each other: ``console`` (refusals and
verbosity), ``terminal`` (the one door to stdout and stderr), ``numbers`` (numbers that are typed), ``files`` (small
files are read), ``process`` (start and exit), ``paging`` (hints on files), ``format`` (figures as text), ``exports``
(names imported on use), ``deferred`` (parts of torch that are imported on use), ``command_names`` (the commands of
both), and ``eagleplan``, the console script with them.

What does not live here: prices and the solver (planner), tensors and torch (runtime). The package imports the standard
library and yaml only; planner and runtime import it.
"""
