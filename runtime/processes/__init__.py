"""Processes of a run: one rank process per device, what is in it, and the parent that starts, watches and ends them.

    serving          a plan's ranks as the engine sees them: one in this process, or one process per device
      launch         starts and ends the rank processes of this host
        fork_server  process that forks them; preloaded: what it imports
      supervisor     thread that receives what ranks send and finds the first failure
        watchdog     decides which rank is to blame when nothing makes progress
        requests     counts what ranks were asked and have finished; shared by caller and supervisor, under a lock
      rank_process   what runs in a rank process
        rank         one rank: its part of the plan, ready to serve requests
        machine      compares the device of a rank with the plan
      torchrun       environment of a process that torchrun started; torchrun_store: state shared between such processes
    thread_wait      spin time of OpenMP threads

`runtime.engine` calls serving, and `runtime.commands` torchrun. Not here: the arithmetic of a step (``decode``,
``model``), collectives (``comm``) and what is printed (``commands``).
"""
