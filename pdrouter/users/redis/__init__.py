"""What routers share in Redis or Valkey. The only room that imports its client.

Imported only where the settings name a server, but for `stats`: else it costs nothing.
"""
