"""Decoding methods for Hugging Face language and vision-language models.

A decoder is an object of settings. It is called as ``decoder.generate(model, ...)``, as
``model.generate(..., custom_generate=decoder)``, or named in a YAML configuration. Decoders with ``lossless = True``
return the model's own text: the greedy one, or the one that a seed draws from exactly the model's distribution.
"""

from saccade.inference.compression.baselines.ada_kv import AdaKV
from saccade.inference.compression.baselines.full_kv import FullKV
from saccade.inference.compression.baselines.head_kv import HeadKV
from saccade.inference.compression.baselines.look_m import LookM
from saccade.inference.compression.baselines.pyramid_kv import PyramidKV
from saccade.inference.compression.baselines.quest import Quest
from saccade.inference.compression.baselines.random_kv import RandomKV
from saccade.inference.compression.baselines.snap_kv import SnapKV
from saccade.inference.compression.baselines.streaming_llm import StreamingLLM
from saccade.inference.compression.baselines.vl_cache import VLCache
from saccade.inference.compression.compressor import CacheCompressor
from saccade.inference.compression.hybrid_kv import HybridKV
from saccade.inference.decoder import Decoder
from saccade.inference.decoders.assisted import AssistedDecoding
from saccade.inference.decoders.autoregressive import Autoregressive
from saccade.inference.decoders.double import Double
from saccade.inference.decoders.lvspec import LVSpec
from saccade.inference.decoders.pearl import Pearl
from saccade.inference.decoders.prompt_lookup import PromptLookup
from saccade.inference.decoders.self_speculative import SelfSpeculative
from saccade.inference.decoders.specvlm import SpecVLM
from saccade.inference.drafting.retrieval_store.text_store import StoredText, TextStore
from saccade.inference.engine.compressed.generate_cache import CompressedCache
from saccade.inference.engine.config import EngineConfig
from saccade.inference.engine.session import Session
from saccade.inference.generation import GenerationOutput, GenerationRun
from saccade.inference.sampling import Sampling
from saccade.inference.statistics import DecodingStats
from saccade.inference.trees import TokenTree

__all__ = [
    "AdaKV",
    "AssistedDecoding",
    "Autoregressive",
    "CacheCompressor",
    "CompressedCache",
    "Decoder",
    "DecodingStats",
    "Double",
    "EngineConfig",
    "FullKV",
    "GenerationOutput",
    "GenerationRun",
    "HeadKV",
    "HybridKV",
    "LVSpec",
    "LookM",
    "Pearl",
    "PromptLookup",
    "PyramidKV",
    "Quest",
    "RandomKV",
    "Sampling",
    "SelfSpeculative",
    "Session",
    "SnapKV",
    "SpecVLM",
    "StoredText",
    "StreamingLLM",
    "TextStore",
    "TokenTree",
    "VLCache",
]
