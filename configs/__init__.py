"""Packaged configuration files, one YAML file for each choice; ``--config lm/demo.yaml`` finds them by name."""
