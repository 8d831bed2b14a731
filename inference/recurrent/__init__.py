"""Recurrent layers: their states, kept token by token, and the functions that advance them."""
