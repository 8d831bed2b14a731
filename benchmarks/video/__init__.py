"""Decoding from videos: acceptance, relevance, speed."""
