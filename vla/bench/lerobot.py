"""LeRobot's π0 in other sizes than its two, for comparison. Needs the dev dependencies.

LeRobot knows its stacks by name and has SigLIP's sizes and the vocabulary written in, so they are
put in while a policy is built; nothing stays changed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from backbone.gemma import GemmaConfig
from vla.batch import Batch
from vla.pi0 import Pi0Config

__all__ = ["their_batch", "their_policy"]

CAMERA = "observation.images.camera"


def their_policy(
    sizes: Pi0Config, cameras: int, dtype: str, device: torch.device, *, compile: bool = False
) -> Any:
    """A `PI0Policy` with random weights, in training mode. dtype: "float32", its default, or
    "bfloat16", in which it keeps its weights too. compile: its `compile_model`, in torch's default
    mode, which ours takes too; its own, "max-autotune", is for CUDA.

    Raises ImportError without LeRobot.
    """
    try:
        from lerobot.configs.types import FeatureType, PolicyFeature
        from lerobot.policies.pi0 import modeling_pi0
        from lerobot.policies.pi0.configuration_pi0 import PI0Config
    except ImportError as error:
        raise ImportError(
            "comparing needs lerobot[pi], one of the dev dependencies: pip install 'vla[dev]'"
        ) from error
    expert, side = sizes.expert, sizes.backbone.vision.resolution
    images = {
        f"{CAMERA}{i}": PolicyFeature(FeatureType.VISUAL, (3, side, side)) for i in range(cameras)
    }
    state = PolicyFeature(FeatureType.STATE, (expert.state_dim,))
    action = PolicyFeature(FeatureType.ACTION, (expert.action_dim,))
    config = PI0Config(
        input_features=images | {"observation.state": state},
        output_features={"action": action},
        dtype=dtype,
        compile_model=compile,
        compile_mode="default",
        chunk_size=expert.horizon,
        n_action_steps=expert.horizon,
        max_state_dim=expert.state_dim,
        max_action_dim=expert.action_dim,
        image_resolution=(side, side),
        device=str(device),
    )
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.WARNING)
    try:
        with _sizes(modeling_pi0, sizes):
            return modeling_pi0.PI0Policy(config).train()
    finally:
        logging.getLogger().setLevel(level)


def their_batch(batch: Batch) -> dict[str, Tensor]:
    """The same observations and actions, as LeRobot takes them: pictures in [0, 1]."""
    assert batch.actions is not None, "a batch to train on"
    pictures = {
        f"{CAMERA}{i}": batch.images[:, i].float() / 255 for i in range(batch.images.shape[1])
    }
    return pictures | {
        "observation.state": batch.state,
        "observation.language.tokens": batch.tokens,
        "observation.language.attention_mask": batch.token_valid,
        "action": batch.actions,
    }


@contextmanager
def _sizes(module: Any, sizes: Pi0Config) -> Iterator[None]:
    """Inside the block `module` builds a policy in these sizes."""
    backbone = sizes.backbone
    stacks = {"gemma_2b": backbone.language, "gemma_300m": sizes.expert.gemma}
    names = (
        "get_gemma_config",
        "PaliGemmaForConditionalGenerationWithPiGemma",
        "PiGemmaForCausalLM",
    )
    own = {name: getattr(module, name) for name in names}
    build_vlm, build_expert = own[names[1]], own[names[2]]

    def vlm(config: Any) -> Any:
        theirs = config.vision_config
        theirs.hidden_size, theirs.num_hidden_layers = backbone.vision.width, backbone.vision.depth
        theirs.intermediate_size = backbone.vision.mlp
        theirs.num_attention_heads = backbone.vision.heads
        theirs.patch_size = backbone.vision.patch
        theirs.projection_dim = config.projection_dim = backbone.language.width
        config.text_config.vocab_size = backbone.vocab
        return build_vlm(config=config)

    def expert(config: Any) -> Any:
        config.vocab_size = backbone.vocab
        return build_expert(config=config)

    made = (lambda name: _theirs(stacks[name]), vlm, expert)
    for name, stand_in in zip(names, made, strict=True):
        setattr(module, name, stand_in)
    try:
        yield
    finally:
        for name, original in own.items():
            setattr(module, name, original)


def _theirs(stack: GemmaConfig) -> SimpleNamespace:
    return SimpleNamespace(
        width=stack.width,
        depth=stack.depth,
        mlp_dim=stack.mlp,
        num_heads=stack.heads,
        num_kv_heads=stack.kv_heads,
        head_dim=stack.head_dim,
    )
