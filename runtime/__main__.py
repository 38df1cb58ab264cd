"""``python -m runtime``."""

from runtime.signals import nothing_to_clean_up

with nothing_to_clean_up():
    from runtime.cli import main

if __name__ == "__main__":
    main()
