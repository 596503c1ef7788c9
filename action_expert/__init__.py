"""Flow-matching action experts: prefix cache and noisy actions in, velocity out."""

from action_expert.adaptive_expert import AdaptiveExpert
from action_expert.expert import ActionExpert, ActionExpertConfig

__all__ = ["ActionExpert", "ActionExpertConfig", "AdaptiveExpert"]
