"""The search for the sub-layers that a draft can skip."""
