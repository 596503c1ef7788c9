"""π0-style robot policies: `Policy` for a trained one in a folder, `Pi0` for the model itself.

Names are imported when they are first used, so that `vla --help` doesn't wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla.pi0 import Pi0, Pi0Config
    from vla.policy import Policy

__all__ = ["Pi0", "Pi0Config", "Policy"]

_HOME = {"Pi0": "vla.pi0", "Pi0Config": "vla.pi0", "Policy": "vla.policy"}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'vla' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
