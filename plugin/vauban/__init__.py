"""vauban: security that runs inside the LLM inference server."""

__version__ = "0.1.0"
