"""Flow-matching action expert: prefix cache, state and noisy actions in, velocity out."""

from action_expert.expert import ActionExpert, ActionExpertConfig

__all__ = ["ActionExpert", "ActionExpertConfig"]
