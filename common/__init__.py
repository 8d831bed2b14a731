"""What all folders share: checks of settings, files, timing, provenance, progress, and ranks that work together."""
