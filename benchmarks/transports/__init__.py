"""Other carriers of `pdrouter/extproc/exchange.py` than grpcio, measured beside it."""
