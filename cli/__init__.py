"""The ``saccade`` command."""
