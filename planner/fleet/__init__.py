"""The division of an inventory into replicas: each a plan of its own, all together the most expected tokens per second.

    parts         host classes, the parts of a machine that a replica may be on, and the ways to divide a host
    templates     what is divided, and what a replica of it may be
    bound         what no division exceeds, without a solver
    upper_bounds  the speed that no plan of a template exceeds, by costs alone
    divide        the search: parts are solved as far as the best division of what is known of them asks for
    record        a division as ``fleet.yaml`` records it, with the devices of every replica
    build         from a request to a fleet, its directory, and the same again from that directory

A *template* is a part of the machine with a batch and the best plan for it; equal parts under other names have one. The
integers of a division are solved by :mod:`planner.solver.division`, plans by :mod:`planner.build`. Not here: the format
(:mod:`plans.fleet`), text (:mod:`planner.report`), and anything that runs (:mod:`runtime`).
"""
