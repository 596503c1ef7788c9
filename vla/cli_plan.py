"""`vla plan`: what a run takes, before it is paid for."""

import argparse
from pathlib import Path

from vla.cli_vlm import positive


def add_plan(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "plan",
        help="memory, work and speed of a run, before it starts",
        description="Say what the run in CONFIG takes on N GPUs: parameters, memory for each "
        "choice of recomputation, the largest batch that fits, FLOPs, samples/s; then how long all "
        "of it takes, what it reads, and what checkpoints and failures cost. Opens no data. "
        "Every field of the config can be overridden by its name, as in `vla train`.",
        usage="vla plan CONFIG [--gpus N] [--memory GB] [--field VALUE ...] [--json]",
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument("--gpus", type=positive, default=1, metavar="N", help="default: 1")
    parser.add_argument(
        "--memory", type=float, default=80.0, metavar="GB", help="of each GPU (default: 80)"
    )
    parser.add_argument(
        "--reserve",
        type=float,
        default=4.0,
        metavar="GB",
        help="of it that stays free for CUDA, workspaces and fragmentation (default: 4)",
    )
    parser.add_argument(
        "--mfu", type=float, default=0.4, metavar="SHARE", help="of the peak (default: 0.4)"
    )
    parser.add_argument(
        "--tflops",
        type=float,
        default=989.0,
        metavar="N",
        help="peak of a GPU (default: 989, an H100's in bfloat16)",
    )
    parser.add_argument(
        "--cameras", type=positive, metavar="N", help="default: the dataset's, or else 3"
    )
    parser.add_argument(
        "--text", type=positive, metavar="N", help="text tokens; default: the prompt's, or else 64"
    )
    parser.add_argument(
        "--picture-kb", type=float, metavar="KB", help="of an encoded picture (default: 100)"
    )
    parser.add_argument(
        "--failure-hours",
        type=float,
        metavar="H",
        help="GPU-hours between failures (default: 50700, Llama 3's)",
    )
    parser.add_argument(
        "--restart", type=float, metavar="MIN", help="minutes that one takes (default: 10)"
    )
    parser.add_argument(
        "--disk", type=float, metavar="GB/S", help="at which checkpoints are written (default: 2)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    parser.set_defaults(run=_run_plan, takes_rest=True)
    return parser


def _run_plan(args: argparse.Namespace) -> None:
    import json

    from vla.config import load_config
    from vla.planning.course import Surroundings, course
    from vla.planning.plan import plan

    named = {n: getattr(args, n) for n in ("picture_kb", "failure_hours", "restart", "disk")}
    around = Surroundings(**{name: value for name, value in named.items() if value is not None})
    config = load_config(args.config, args.overrides)
    result = plan(
        config,
        gpus=args.gpus,
        memory=args.memory,
        reserve=args.reserve,
        mfu=args.mfu,
        tflops=args.tflops,
        cameras=args.cameras,
        text=args.text,
    )
    whole = course(config, result, around)
    if args.json:
        print(json.dumps(result.as_json() | {"course": whole.as_json()}, indent=2))
    else:
        print(f"{result}\n{whole}")
