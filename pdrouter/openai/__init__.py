"""The OpenAI-compatible surface: bodies, paths, validation, errors. No I/O."""
