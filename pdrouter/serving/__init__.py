"""The life of one inference request, whatever carries it."""
