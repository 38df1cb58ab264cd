"""Commands: the command line of the runtime."""
