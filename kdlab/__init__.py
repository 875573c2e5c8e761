"""kdlab distils and transfers language models: one run graph, one store, one training loop."""

__version__ = "0.1.0"
