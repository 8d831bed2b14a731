"""The study of training-data selection, and the speed of its parts."""
