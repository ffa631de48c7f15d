"""Which pods: strategies made of filters, scorers and a picker. No I/O."""
