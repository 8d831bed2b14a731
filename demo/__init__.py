"""The demo of `make demo`: decoders compared on a real model, or where there is none, on a small one trained here."""
