"""Report: a plan as tables, Markdown and HTML."""
