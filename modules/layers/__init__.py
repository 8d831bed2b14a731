"""The parts of T2DR, each usable by itself. Names, order and purpose are the paper's; the formulas are ours."""

from saccade.modules.layers.cas import CAS
from saccade.modules.layers.iadr import IADR
from saccade.modules.layers.inter_attn import InterAttn
from saccade.modules.layers.intra_attn import IntraAttn
from saccade.modules.layers.sfp import SFP
from saccade.modules.layers.stem import Stem

__all__ = ["CAS", "IADR", "SFP", "InterAttn", "IntraAttn", "Stem"]
