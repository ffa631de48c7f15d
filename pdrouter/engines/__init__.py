"""How each engine and KV connector splits a request in two legs. Pure functions."""
