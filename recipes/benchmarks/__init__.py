"""The rows of ``recipes/benchmark.py``, a module per subject; each benchmark yields rows, and notes as plain text."""
