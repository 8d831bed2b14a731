"""What T2DR is compared with: the field's ideas on the same stems, encoders, training and data."""

from saccade.modules.baselines.crossmodal_transformer import CrossmodalTransformer
from saccade.modules.baselines.late_fusion import LateFusion
from saccade.modules.baselines.lnln import LNLNLike
from saccade.modules.baselines.tfr_net import TFRNetLike

__all__ = ["CrossmodalTransformer", "LNLNLike", "LateFusion", "TFRNetLike"]
