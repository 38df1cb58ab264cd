"""Plans placements offline: reads checkpoints and an inventory, solves, writes plans and compiles their images."""
