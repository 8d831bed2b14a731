"""Visual tokens left out of a prompt: which, and what is read of the rest."""
