"""Types of CP-SAT expressions and variables."""

from ortools.sat.python import cp_model

Linear = cp_model.LinearExpr | int


Bool = cp_model.IntVar
