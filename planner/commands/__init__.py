"""The commands of `python -m planner`; the only place that prints. stdout is data, stderr is for people."""
