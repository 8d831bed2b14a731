"""Lightning callbacks: decoders measured in validation, and the search for the sub-layers a draft skips."""

from saccade.callbacks.decoding_evaluation import DecodingEvaluation
from saccade.callbacks.run_folder import run_folder

__all__ = ["DecodingEvaluation", "run_folder"]
