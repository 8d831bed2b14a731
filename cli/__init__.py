"""Code of the ``saccade`` command."""
