"""The one error of wrong input."""


class TrainingError(Exception):
    """Input that cannot be used; the text is one line with the path to the datum, what was found and expected."""
