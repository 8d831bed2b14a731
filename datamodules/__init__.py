"""LightningDataModules: text, multimodal data with protocols that take data away, chunks of retrieval pairs."""

from saccade.datamodules.chunk_pool import ChunkPool
from saccade.datamodules.missing_data import Condition, MissingProtocol
from saccade.datamodules.multimodal_batch import Modality, MultimodalBatch
from saccade.datamodules.multimodal_sentiment import MultimodalSentiment
from saccade.datamodules.protocols import (
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
from saccade.datamodules.synthetic_sentiment import SyntheticSentiment
from saccade.datamodules.text_corpus import TextCorpus
from saccade.datamodules.video_captions import VideoCaptions

__all__ = [
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
    "RandomFeatureMissing",
    "RandomModalityMissing",
    "RandomRateMissing",
    "RateTriples",
    "SyntheticSentiment",
    "TextCorpus",
    "TwoTierMissing",
    "VideoCaptions",
]
