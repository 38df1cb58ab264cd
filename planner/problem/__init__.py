"""Problem: turns a model, options and an inventory into the integers that the solver sees."""
