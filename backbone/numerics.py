"""Where public implementations of the same model round or prepare differently.

Weights carry the rounding that they were trained under, so a checkpoint's config holds one of these
values. The default is the JAX reference (openpi and big_vision).
"""

from dataclasses import dataclass
from typing import Literal

Resize = Literal["pil", "jax", "torch", "bicubic", "tf"]


@dataclass(frozen=True)
class Numerics:
    """One implementation's choices. Those about rounding have no effect on float32 weights.

    Attention logits are float32 in fused attention, everywhere: what openpi PyTorch, LeRobot and
    Hugging Face round there is less than their own distance from float32.

    In the model:
    round_rope_frequencies: rotary frequencies are rounded to the weights' dtype.
    rotate_in_activation: cosines and sines are rounded to the activations' dtype, and so is the
        rotation; else float32.
    round_norm_scale: 1 + weight of a norm is computed in the weight's dtype; else float32.
    float32_modulation: π0.5's adaptive scale, shift and gate are float32; else of the activations.
    round_text_scale: √width is rounded to the table's dtype before it multiplies (45.25 at 2048).
    float32_vision: SigLIP and the projector keep float32 weights and compute in float32.
    float32_heads: the action expert's own projections keep float32 weights, and the velocity is
        float32; else the velocity is rounded to the activations' dtype.
    float64_time: the sines of flow time are computed in float64 and then rounded to float32.

    Around the model:
    resize: how a picture becomes the model's square: "pil" letterbox of openpi's client (bilinear,
        antialiased, uint8), "jax" and "torch" letterbox of openpi's models (the latter without
        antialiasing, as LeRobot), "bicubic" square of Hugging Face, "tf" square of big_vision
        (bilinear, antialiased).
    clean_prompt: strip, underscores and newlines to spaces; else the prompt is left as it is.
    std_epsilon: added to a std, or to a quantile range, before dividing.
    epsilon_in_inverse: the same epsilon is undone on the way back; else it is left out.
    loss_over_padding: padded action dimensions count in the loss; else the robot's own only.
    """

    round_rope_frequencies: bool = False
    rotate_in_activation: bool = False
    round_norm_scale: bool = True
    float32_modulation: bool = False
    round_text_scale: bool = True
    float32_vision: bool = False
    float32_heads: bool = False
    float64_time: bool = False
    resize: Resize = "pil"
    clean_prompt: bool = True
    std_epsilon: float = 1e-6
    epsilon_in_inverse: bool = True
    loss_over_padding: bool = True


OPENPI_JAX = Numerics()
BIG_VISION = Numerics(resize="tf")
OPENPI_PYTORCH = Numerics(
    round_rope_frequencies=True,
    rotate_in_activation=True,
    round_norm_scale=False,
    float32_modulation=True,
    round_text_scale=False,
    float32_heads=True,
    float64_time=True,
)
LEROBOT = Numerics(
    round_rope_frequencies=True,
    rotate_in_activation=True,
    round_norm_scale=False,
    float32_modulation=True,
    float32_vision=True,
    float32_heads=True,
    float64_time=True,
    resize="torch",
    clean_prompt=False,
    std_epsilon=1e-8,
    epsilon_in_inverse=False,
    loss_over_padding=False,
)
HUGGING_FACE = Numerics(
    rotate_in_activation=True,
    round_norm_scale=False,
    resize="bicubic",
)
