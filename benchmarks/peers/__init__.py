"""This package beside other packages of the field, in one run: ``python -m peers``.

See ``peers/__main__.py``; ``make peers`` runs it in the environment of ``make plugins``.
"""
