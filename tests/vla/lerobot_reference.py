"""LeRobot's own π0 and π0.5 at sizes that their config classes do not admit.

LeRobot knows gemma_2b and gemma_300m by name only, so the sizes are put in while a policy is built.
"""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from backbone.gemma import GemmaConfig
from vla.model import ModelConfig
from vla.pi05 import Pi05Config


def load_lerobot(folder: Path, config: ModelConfig):
    """`PI0Policy.from_pretrained(folder)`, or π0.5's, built with the sizes of `config`.

    Raises AssertionError where LeRobot only prints that the weights did not load.
    """
    if isinstance(config, Pi05Config):
        from lerobot.policies.pi05 import modeling_pi05 as module

        kind = module.PI05Policy
    else:
        from lerobot.policies.pi0 import modeling_pi0 as module

        kind = module.PI0Policy
    printed: list[str] = []
    with _sizes(module, config), patch("builtins.print", lambda *words: printed.append(str(words))):
        policy = kind.from_pretrained(folder)
    assert any("All keys loaded successfully" in line for line in printed), printed
    return policy.eval()


@contextmanager
def _sizes(module, config: ModelConfig):
    stacks = {"gemma_2b": config.backbone.language, "gemma_300m": config.expert.gemma}
    vlm, expert = module.PaliGemmaForConditionalGenerationWithPiGemma, module.PiGemmaForCausalLM

    def small_vlm(config_hf):
        vision, theirs = config.backbone.vision, config_hf.vision_config
        theirs.hidden_size, theirs.num_hidden_layers = vision.width, vision.depth
        theirs.intermediate_size, theirs.num_attention_heads = vision.mlp, vision.heads
        theirs.patch_size = vision.patch
        theirs.projection_dim = config_hf.projection_dim = config.backbone.language.width
        config_hf.text_config.vocab_size = config.backbone.vocab
        return vlm(config=config_hf)

    def small_expert(config_hf):
        config_hf.vocab_size = config.backbone.vocab
        return expert(config=config_hf)

    with (
        patch.object(module, "get_gemma_config", lambda name: _theirs(stacks[name])),
        patch.object(
            module, "PaliGemmaForConditionalGenerationWithPiGemma", lambda config: small_vlm(config)
        ),
        patch.object(module, "PiGemmaForCausalLM", lambda config: small_expert(config)),
    ):
        yield


def _theirs(stack: GemmaConfig) -> SimpleNamespace:
    return SimpleNamespace(
        width=stack.width,
        depth=stack.depth,
        mlp_dim=stack.mlp,
        num_heads=stack.heads,
        num_kv_heads=stack.kv_heads,
        head_dim=stack.head_dim,
    )
