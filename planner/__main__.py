"""``python -m planner``: runs the command line."""

from plans.process import ended_at_once, importing

with importing():
    from planner.cli import main

if __name__ == "__main__":
    with ended_at_once():
        main(prog_name="python -m planner")
