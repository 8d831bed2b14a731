"""Lightning callbacks: evaluation of decoders and of missing data, searches, prediction tables, export."""

from saccade.callbacks.decoding.evaluation import DecodingEvaluation
from saccade.callbacks.export import ModelExport
from saccade.callbacks.layer_skip.saved_model import search_layers_of
from saccade.callbacks.layer_skip.search import LayerSkipResult, LayerSkipSearch, search_layers
from saccade.callbacks.missing_data.evaluation import MissingDataEvaluation
from saccade.callbacks.prediction_table import PredictionTable
from saccade.callbacks.run_folder import run_folder
from saccade.callbacks.trait.selection import TraitSelection

__all__ = [
    "DecodingEvaluation",
    "LayerSkipResult",
    "LayerSkipSearch",
    "MissingDataEvaluation",
    "ModelExport",
    "PredictionTable",
    "TraitSelection",
    "run_folder",
    "search_layers",
    "search_layers_of",
]
