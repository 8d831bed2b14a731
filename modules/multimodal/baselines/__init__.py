"""Baselines of T2DR: ideas of published models on the same stems, encoders, training and data."""

from saccade.modules.multimodal.baselines.crossmodal_transformer import CrossmodalTransformer
from saccade.modules.multimodal.baselines.late_fusion import LateFusion
from saccade.modules.multimodal.baselines.lnln import LNLNLike
from saccade.modules.multimodal.baselines.tfr_net import TFRNetLike

__all__ = ["CrossmodalTransformer", "LNLNLike", "LateFusion", "TFRNetLike"]
