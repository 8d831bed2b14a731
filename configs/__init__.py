"""Ready-made settings, one YAML file per choice; ``saccade --config lm/demo.yaml`` finds them by name."""
