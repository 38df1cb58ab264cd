"""What a reader of plans raises."""


class PlanError(Exception):
    """A plan, or a file beside it, that cannot be used; ``exit_code`` is that of the command.

    PlanError                 2
    ├── NewerSchemaError      2   written by a newer major version of the format
    └── InvalidPlanError      2   reads well and contradicts itself (``plans.check``)
    """

    exit_code = 2


class NewerSchemaError(PlanError):
    """The plan was written by a newer major version of the format."""
