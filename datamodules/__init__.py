"""LightningDataModules: text, prompts, videos, multimodal samples with missing-data protocols, and retrieval pairs."""

from saccade.datamodules.multimodal.batch import Modality, MultimodalBatch
from saccade.datamodules.multimodal.missing.base import Condition, MissingProtocol
from saccade.datamodules.multimodal.missing.protocols import (
    CiderMissing,
    FixedModalityMissing,
    FrameDrop,
    NothingMissing,
    PatternDropout,
    RandomFeatureMissing,
    RandomModalityMissing,
    RandomRateMissing,
    RateTriples,
    TwoTierMissing,
)
from saccade.datamodules.multimodal.sentiment import MultimodalSentiment
from saccade.datamodules.multimodal.synthetic import SyntheticSentiment
from saccade.datamodules.prompts.chat_corpus import ChatCorpus
from saccade.datamodules.prompts.prompts import Prompts
from saccade.datamodules.retrieval.chunk_pool import ChunkPool
from saccade.datamodules.text.corpus import TextCorpus
from saccade.datamodules.video.captions import VideoCaptions

__all__ = [
    "ChatCorpus",
    "ChunkPool",
    "CiderMissing",
    "Condition",
    "FixedModalityMissing",
    "FrameDrop",
    "MissingProtocol",
    "Modality",
    "MultimodalBatch",
    "MultimodalSentiment",
    "NothingMissing",
    "PatternDropout",
    "Prompts",
    "RandomFeatureMissing",
    "RandomModalityMissing",
    "RandomRateMissing",
    "RateTriples",
    "SyntheticSentiment",
    "TextCorpus",
    "TwoTierMissing",
    "VideoCaptions",
]
