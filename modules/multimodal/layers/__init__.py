"""The layers of T2DR, usable separately. Names, order and purpose are those of the paper; the formulas are ours."""

from saccade.modules.multimodal.layers.cas import CAS
from saccade.modules.multimodal.layers.iadr import IADR
from saccade.modules.multimodal.layers.inter_attn import InterAttn
from saccade.modules.multimodal.layers.intra_attn import IntraAttn
from saccade.modules.multimodal.layers.sfp import SFP
from saccade.modules.multimodal.layers.stem import Stem

__all__ = ["CAS", "IADR", "SFP", "InterAttn", "IntraAttn", "Stem"]
