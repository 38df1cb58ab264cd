"""Hardware: which hosts, devices and links there are, as records with every figure.

``inventory`` reads an inventory file into the records of ``records``, its links in ``inventory_links``, rates of
devices that compute at once in ``inventory_together``, fields by the getters of ``inventory_fields``, with the defaults
of ``catalog`` (a table of GPU types and link classes in ``catalog.yaml``) and quantities as ``units`` parses them;
``inventory_text`` writes it back.
``measured`` makes figures of samples that the runtime took, with their spread. ``nvml`` reads the GPUs of this
machine, ``detect`` describes them as an inventory, and ``detect_cpu`` measures a machine without any.

Predicted times are no business of this package: they are computed in :mod:`planner.costs` from the inventory of a plan
(:class:`plans.schema.Inventory`), which :meth:`records.HardwareInventory.at` makes for a dtype. Requests hold the
records, refusals change them (:mod:`planner.remedies`); the commands ``build`` and ``inventory`` read and detect them.
"""
