"""The fork server: started without torch in its parent, with what ranks need and no more of torch."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """if True:
    import multiprocessing, sys
    from multiprocessing import forkserver
    from runtime.processes import fork_server

    fork_server.start()
    assert "torch" not in sys.modules
    server = forkserver._forkserver._forkserver_pid
    process = multiprocessing.get_context("forkserver").Process(target=exec, args=(sys.argv[1], {}))
    process.start()
    process.join()
    assert process.exitcode == 0
    fork_server.start()
    assert forkserver._forkserver._forkserver_pid == server
"""
RANK = """
import sys
assert "runtime.processes.rank_process" in sys.modules, "it was imported before the process was forked"
from plans.deferred import UNUSED, Deferred
assert {name for name in UNUSED if isinstance(sys.modules[name], Deferred)} == UNUSED
"""


def test_it_has_what_ranks_need_and_no_more_of_torch() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, RANK], cwd=ROOT, check=True)
