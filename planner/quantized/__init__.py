"""Quantized checkpoints: which linear layers have codes instead of weights, and how these become rows of images."""

from planner.quantized.autoround import AutoRoundRecipe
from planner.quantized.layouts import Rounded, RoundedColumns
from planner.quantized.mxfp4 import Mxfp4Recipe
from planner.quantized.recipe import METHODS, read_recipe
from planner.quantized.records import Expected, Part, Proof, Recipe, ScaleDType, Stored, check, kv_scales

__all__ = [
    "METHODS",
    "AutoRoundRecipe",
    "Expected",
    "Mxfp4Recipe",
    "Part",
    "Proof",
    "Recipe",
    "Rounded",
    "RoundedColumns",
    "ScaleDType",
    "Stored",
    "check",
    "kv_scales",
    "read_recipe",
]
