"""Subroutines of kernels: functions that only kernels call, compiled as parts of the kernels that do.

What Numba's ``njit`` compiles can be called from Python too: each function is compiled to machine code of its own, with
wrappers, and all that it calls is optimised again with it. A subroutine is added to the library of the kernel instead,
which is optimised and compiled once.
"""

import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from llvmlite import ir
from numba.core import compiler, types
from numba.core.cpu_options import FastMathOptions
from numba.extending import intrinsic

from runtime.model.kernels.elements import FLOATING, panels, tiles

_COMPILED: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()
"""By library, which is one kernel: descriptors of the subroutines in it, by function and signature."""


def subroutine(
    result: types.Type = types.void, *, fast: frozenset[str] = FLOATING, apart: bool = False
) -> Callable[[Any], Any]:
    """Return a decorator that makes a function a subroutine, which returns ``result``.

    ``fast``: fast-math flags. ``apart``: its code is there once, and not copied to where it is called.
    """

    def decorate(function: Any) -> Any:
        def typed(typing: Any, *arguments: Any) -> Any:
            signature = result(*arguments)

            def code(context: Any, builder: ir.IRBuilder, _: Any, values: Any) -> Any:
                compiled = _COMPILED.setdefault(context.active_code_library, {})
                if (function, signature) not in compiled:
                    compiled[function, signature] = _compile(context, function, signature, fast)
                called = context.declare_function(builder.module, compiled[function, signature])
                attributes = ("noinline",) if apart else None
                _, value = context.call_conv.call_function(
                    builder, called, signature.return_type, signature.args, values, attrs=attributes
                )
                return value

            return signature, code

        own = list(inspect.signature(function).parameters.values())
        first = inspect.Parameter("typing", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        typed.__signature__ = inspect.Signature([first, *own])  # type: ignore[attr-defined]
        typed.__name__ = typed.__qualname__ = function.__name__
        typed.__doc__ = function.__doc__
        return intrinsic(typed)

    return decorate


def by_tiles(tiled: Any, other: Any) -> Any:
    """Return a function: ``tiled`` where tiles of the elements of its first argument are multiplied, else ``other``.

    Both are subroutines with the same arguments; only the one that is chosen is compiled.
    """
    return _by_element(tiles, tiled, other)


def by_panels(paneled: Any, other: Any) -> Any:
    """Return a function: ``paneled`` where panels of elements of its first argument are multiplied, else ``other``."""
    return _by_element(panels, paneled, other)


def _by_element(chosen: Callable[[types.Type], bool], one: Any, other: Any) -> Any:
    def typed(typing: Any, *arguments: Any) -> Any:
        return (one if chosen(arguments[0].dtype) else other)._defn(typing, *arguments)

    typed.__signature__ = inspect.signature(other._defn)  # type: ignore[attr-defined]
    typed.__name__ = typed.__qualname__ = other._defn.__name__
    return intrinsic(typed)


def _compile(context: Any, function: Any, signature: Any, fast: frozenset[str]) -> Any:
    """Add a function to the library that is being compiled; return its descriptor."""
    flags = compiler.Flags()
    flags.error_model, flags.fastmath = "numpy", FastMathOptions(set(fast))
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    library, arguments, result = context.active_code_library, signature.args, signature.return_type
    return compiler.compile_internal(
        context.typing_context, context, library, function, arguments, result, flags, locals={}
    ).fndesc
