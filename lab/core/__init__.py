"""The language model that the operators run in: loading, generating, saving."""

from lab.core.cache import KVCache
from lab.core.checkpoint import CheckpointError, read_config
from lab.core.config import MODELS, ModelConfig
from lab.core.generation import Sampling, generate, generate_text
from lab.core.model import LLM

__all__ = [
    "LLM",
    "MODELS",
    "CheckpointError",
    "KVCache",
    "ModelConfig",
    "Sampling",
    "generate",
    "generate_text",
    "read_config",
]
