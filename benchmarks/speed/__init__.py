"""What the router costs behind the real Envoy, beside what it could cost at the least."""
