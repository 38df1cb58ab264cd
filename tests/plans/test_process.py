import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plans.process import defer_signals

ROOT = Path(__file__).parents[2]


def test_ctrl_c_while_libraries_are_imported_ends_the_process_with_130() -> None:
    program = (
        "import os, signal\n"
        "from plans.process import importing\n"
        "with importing():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except BaseException:\n"  # as a library may have it around an import
        "        pass\n"
        "print('went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_before_a_command_has_begun_ends_the_process_with_130() -> None:
    program = (
        "import os, signal\n"
        "from plans.process import ended_at_once\n"
        "with ended_at_once():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_in_a_function_that_a_library_calls_back_is_not_lost() -> None:
    """ctypes prints and ignores an error that is raised there, as in the compiler of the CPU kernels."""
    program = (
        "import ctypes, os, signal\n"
        "from plans.process import ended_by_ctrl_c\n"
        "interrupt = ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "with ended_by_ctrl_c():\n"
        "    interrupt()\n"
        "print('went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_the_first_module_of_a_command_imports_nothing_else_of_the_product() -> None:
    program = (
        "import sys; import plans.process; print(*(n for n in sys.modules if n.split('.')[0] in ('plans', 'click')))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["plans", "plans.process"]


def test_a_deferred_signal_arrives_after_the_context_and_once() -> None:
    begun, ended = [], []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 (what is reached before it is the test)
        with defer_signals(signal.SIGINT):
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)
            begun.append(1)
        ended.append(1)
    assert (begun, ended) == ([1], [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_a_process_is_forked_is_not_lost() -> None:
    """Python prints and ignores an error that is raised in what a fork calls."""
    program = (
        "import os, signal, sys\n"
        "from plans.process import defer_signals\n"
        "def interrupt():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "os.register_at_fork(after_in_parent=interrupt)\n"
        "try:\n"
        "    with defer_signals(signal.SIGINT):\n"
        "        if os.fork() == 0:\n"
        "            os._exit(0)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")
