"""HTTP/1.1 to engines: requests over pooled connections, answers within bounds."""
