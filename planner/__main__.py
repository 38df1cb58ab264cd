"""``python -m planner``."""

from plans.signals import nothing_to_clean_up

with nothing_to_clean_up():
    from planner.cli import main

if __name__ == "__main__":
    main(prog_name="python -m planner")
