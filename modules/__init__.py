"""LightningModules: what `saccade fit` trains."""

from saccade.modules.baselines import CrossmodalTransformer, LateFusion, LNLNLike, TFRNetLike
from saccade.modules.language_model import LanguageModel
from saccade.modules.lora import LoraSettings
from saccade.modules.multimodal import MultimodalModule, Optimization
from saccade.modules.reranker import Reranker
from saccade.modules.retriever import Retriever
from saccade.modules.sublayer_dropout import SublayerDropout
from saccade.modules.t2dr import T2DR, LossWeights
from saccade.modules.video_dropout import VideoTokenDropout
from saccade.modules.vision_language_model import VisionLanguageModel

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
