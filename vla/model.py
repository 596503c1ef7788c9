"""π0 or π0.5, whichever a config describes."""

from __future__ import annotations

from vla.pi0 import Pi0, Pi0Config
from vla.pi05 import Pi05, Pi05Config

type Model = Pi0 | Pi05
type ModelConfig = Pi0Config | Pi05Config


def build(config: ModelConfig) -> Model:
    """The model of these sizes, with random weights on torch's default device."""
    return Pi05(config) if isinstance(config, Pi05Config) else Pi0(config)
