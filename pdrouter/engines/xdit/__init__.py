"""xDiT, which makes images and videos: one pod serves a request."""
