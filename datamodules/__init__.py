"""LightningDataModules: text corpora, packed and split by file."""

from saccade.datamodules.text_corpus import TextCorpus

__all__ = ["TextCorpus"]
