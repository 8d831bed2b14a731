"""Lightning callbacks: decoders measured in validation, and the search for the sub-layers a draft skips."""

from saccade.callbacks.decoding_evaluation import DecodingEvaluation
from saccade.callbacks.export import ModelExport
from saccade.callbacks.layer_skip_command import search_layers_of
from saccade.callbacks.layer_skip_search import LayerSkipResult, LayerSkipSearch, search_layers
from saccade.callbacks.run_folder import run_folder

__all__ = [
    "DecodingEvaluation",
    "LayerSkipResult",
    "LayerSkipSearch",
    "ModelExport",
    "run_folder",
    "search_layers",
    "search_layers_of",
]
