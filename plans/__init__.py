"""Plans: the contract between planner and runtime."""
