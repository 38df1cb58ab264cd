"""The commands of ``python -m planner``: the only package of the planner that prints and reads the environment.

``declarations`` has every command (``command.Command``) with its arguments, options, help and examples, and imports
nothing heavy, so that ``--help`` and refused command lines take no longer than to import click. Each command runs in
the module of its name (``build``, ``check``, ``compile``, ``show``, ``diff``, ``inventory``, ``scan``), which is
imported when it runs. ``options`` turns the text of an option into a value; ``console`` writes messages and JSON
objects; ``refusals`` turns errors into exit codes, text and data; ``objectives`` has the proof's lines of ``-vv``;
``tables`` and ``progress`` use rich.

stdout is data, stderr is for people. No decision about a plan is made here: a command calls the functions of
:mod:`planner.api`, which are also the Python interface. ``planner.cli`` alone calls this package.
"""
