"""vLLM on Neuron."""
