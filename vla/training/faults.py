"""What can end a run beside its end, each with the exit status that tells it from the others.

0 done · 1 a bug of ours · 2 a config or file that the user can put right · 3 bad data · 4 the loss
or a gradient is not finite · 5 another process was lost · 6 a process that prepares batches was
lost · 130 Ctrl-C · 143 SIGTERM, after a checkpoint
"""

__all__ = ["BadData", "LostPeer", "LostWorker", "NotFinite"]


class BadData(ValueError):
    """A dataset that can't be trained on."""

    exit_status = 3


class NotFinite(ValueError):
    """A loss or gradient norm is NaN or infinite; weights and moments are as before the step."""

    exit_status = 4


class LostPeer(RuntimeError):
    """Another process of the run ended, or has not been heard of for `parallel.timeout` seconds."""

    exit_status = 5


class LostWorker(RuntimeError):
    """A process that prepares batches died, or took more than `worker_timeout` seconds for one."""

    exit_status = 6
