"""LightningModules: what `saccade fit` trains."""

from saccade.modules.language_model import LanguageModel
from saccade.modules.lora import LoraSettings
from saccade.modules.sublayer_dropout import SublayerDropout

__all__ = ["LanguageModel", "LoraSettings", "SublayerDropout"]
