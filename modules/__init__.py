"""LightningModules: what `saccade fit` trains."""

from saccade.modules.language.model import LanguageModel
from saccade.modules.language.sublayer_dropout import SublayerDropout
from saccade.modules.language.video_dropout import VideoTokenDropout
from saccade.modules.language.vision_model import VisionLanguageModel
from saccade.modules.lora import LoraSettings
from saccade.modules.multimodal.base import MultimodalModule, Optimization
from saccade.modules.multimodal.baselines import CrossmodalTransformer, LateFusion, LNLNLike, TFRNetLike
from saccade.modules.multimodal.t2dr import T2DR, LossWeights
from saccade.modules.retrieval.reranker import Reranker
from saccade.modules.retrieval.retriever import Retriever

__all__ = [
    "T2DR",
    "CrossmodalTransformer",
    "LNLNLike",
    "LanguageModel",
    "LateFusion",
    "LoraSettings",
    "LossWeights",
    "MultimodalModule",
    "Optimization",
    "Reranker",
    "Retriever",
    "SublayerDropout",
    "TFRNetLike",
    "VideoTokenDropout",
    "VisionLanguageModel",
]
