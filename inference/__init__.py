"""Decoders for Hugging Face language models: one object, three doors, lossless where it says so."""

from saccade.inference.decoder import Decoder
from saccade.inference.decoders.assisted import AssistedDecoding
from saccade.inference.decoders.autoregressive import Autoregressive
from saccade.inference.decoders.lvspec import LVSpec
from saccade.inference.decoders.prompt_lookup import PromptLookup
from saccade.inference.decoders.self_speculative import SelfSpeculative
from saccade.inference.decoders.specvlm import SpecVLM
from saccade.inference.engine.config import EngineConfig
from saccade.inference.engine.session import Session
from saccade.inference.generation import GenerationOutput, GenerationRun
from saccade.inference.sampling import Sampling
from saccade.inference.statistics import DecodingStats
from saccade.inference.trees import TokenTree

__all__ = [
    "AssistedDecoding",
    "Autoregressive",
    "Decoder",
    "DecodingStats",
    "EngineConfig",
    "GenerationOutput",
    "GenerationRun",
    "LVSpec",
    "PromptLookup",
    "Sampling",
    "SelfSpeculative",
    "Session",
    "SpecVLM",
    "TokenTree",
]
