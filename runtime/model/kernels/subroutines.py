"""Subroutines of kernels: functions that only kernels call, compiled as parts of the kernels that do.

What Numba's ``njit`` compiles can be called from Python too, for which each function is compiled to machine code of its
own, with wrappers. A subroutine has none of that, which halves the time that a kernel takes to compile.
"""

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import compiler, types
from numba.core.cpu_options import FastMathOptions
from numba.extending import intrinsic

from runtime.model.kernels.elements import FLOATING


def subroutine(result: types.Type = types.void, *, fast: frozenset[str] = FLOATING) -> Callable[[Any], Any]:
    """Return a decorator that makes a function a subroutine, which returns ``result``; ``fast``: fast-math flags."""

    def decorate(function: Any) -> Any:
        def typed(typing: Any, *arguments: Any) -> Any:
            signature = result(*arguments)

            def code(context: Any, builder: ir.IRBuilder, _: Any, values: Any) -> Any:
                flags = compiler.Flags()
                flags.error_model, flags.fastmath = "numpy", FastMathOptions(set(fast))
                part = context.compile_subroutine(builder, function, signature, flags=flags)
                return context.call_internal(builder, part.fndesc, signature, values)

            return signature, code

        own = list(inspect.signature(function).parameters.values())
        first = inspect.Parameter("typing", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        typed.__signature__ = inspect.Signature([first, *own])  # type: ignore[attr-defined]
        typed.__name__ = typed.__qualname__ = function.__name__
        typed.__doc__ = function.__doc__
        return intrinsic(typed)

    return decorate
