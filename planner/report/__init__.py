"""Plans as text: tables for a terminal, Markdown, HTML, the lines of ``-v``, and plain data for programs.

``view`` turns a plan into the words and the order of a report, ``models`` those of model and drafter; ``render`` turns
that into tables, Markdown and HTML (``templates/``), and holds the data of ``--json``; ``details`` has the lines of
``-v`` and ``-vv``. All are pure functions of plans, and import nothing else of the planner: nothing is decided, read,
printed or written here. The package ``planner.commands`` calls it.
"""
