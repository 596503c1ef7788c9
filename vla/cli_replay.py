"""`vla replay`: a step that was not finite, made again."""

import argparse
from pathlib import Path


def add_replay(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "replay",
        help="where a loss or gradient that was not finite came from",
        description="Make the loss and gradients of a kept batch again, with the weights of the "
        "run's checkpoint, and say which samples and which part of the model first gave a number "
        "that is not finite. Nothing is changed.",
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="RUN/not_finite/STEP.PROCESS.safetensors"
    )
    parser.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run_replay)
    return parser


def _run_replay(args: argparse.Namespace) -> None:
    import json

    from vla.training.replay import replay
    from vla.vlm_commands import as_device

    told = replay(args.file, as_device(args.device))
    print(json.dumps(told.as_json(), indent=2) if args.json else told)
