"""The rounding of predicted times: by so much a bound of one problem may miss another, whose times have other units."""

from plans.acceptance import PPM
from plans.check_inputs import ROUNDING_PPM

LOWERED = 1 - ROUNDING_PPM / PPM
"""Factor of a bound from below."""
RAISED = 1 + ROUNDING_PPM / PPM
"""Factor of a bound from above."""
