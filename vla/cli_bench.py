"""`vla bench`: speeds of this package beside another one's."""

import argparse
from pathlib import Path

from vla.cli_vlm import positive


def add_bench(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "bench",
        help="speeds, beside another implementation in the same run",
        description="Measure speeds with random weights, beside another implementation's in the "
        "same run, or of choices beside each other.",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    _add_vlm(kinds)
    _add_train(kinds)
    _add_draws(kinds)
    return parser


def _add_vlm(kinds) -> None:
    parser = kinds.add_parser(
        "vlm",
        help="a PaliGemma's prefill and decoding, beside transformers'",
        description="Time prefill and decoding of PaliGemma-3B at 224 pixels, batch 1, beside "
        "transformers' generate with the same weights, and what share they reach of the machine's "
        "matmul and memory bandwidth. Ours is compiled first. Takes 8 GB of memory and minutes.",
    )
    parser.add_argument(
        "--size", choices=("full", "small"), default="full", help="small: a toy, in seconds"
    )
    parser.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    parser.add_argument("--eager", action="store_true", help="leave ours as it is, too")
    parser.add_argument("--repeats", type=positive, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--tokens", type=positive, default=16, metavar="N", help="of each answer (default: 16)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, times in seconds")
    parser.set_defaults(run=_run_vlm)


def _run_vlm(args: argparse.Namespace) -> None:
    import json

    from vla.bench.vlm import SIZES, bench_vlm
    from vla.vlm_commands import as_device

    sizes, side = SIZES[args.size]
    device = as_device(args.device)
    result = bench_vlm(
        sizes,
        side,
        device=device,
        repeats=args.repeats,
        tokens=args.tokens,
        compiled=not args.eager,
    )
    print(json.dumps(result.as_json(), indent=2) if args.json else result)


def _add_train(kinds) -> None:
    parser = kinds.add_parser(
        "train",
        help="a training step of π0, beside LeRobot's",
        description="Time a training step of π0 (forward, backward, clipping, AdamW) with and "
        "without recomputed activations, and its memory, beside LeRobot's π0 in the same sizes. "
        "For the full size on one card: --size full --device cuda --precision bfloat16 "
        "--recompute 1 --alone, with --mode lora or expert, or full with --optimiser adamw8bit.",
    )
    parser.add_argument(
        "--size",
        choices=("toy", "S", "M", "full"),
        default="S",
        help="44 million parameters, 240 million, π0's 3.2 billion (default: S)",
    )
    parser.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--mode",
        choices=("full", "lora", "expert"),
        default="full",
        help="what learns: everything, adapters of rank 16, the expert (default: full)",
    )
    parser.add_argument(
        "--optimiser", choices=("adamw", "adamw8bit", "adafactor"), default="adamw", help="ours"
    )
    parser.add_argument("--batch", type=positive, default=2, metavar="N", help="default: 2")
    parser.add_argument("--cameras", type=positive, default=2, metavar="N", help="default: 2")
    parser.add_argument("--repeats", type=positive, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--recompute",
        type=positive,
        metavar="N",
        help="every so-manieth block's activations; default: none, and beside it every block's",
    )
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile: our blocks, LeRobot's forward pass"
    )
    parser.add_argument("--alone", action="store_true", help="without LeRobot's")
    parser.add_argument("--json", action="store_true", help="print JSON, times in seconds")
    parser.set_defaults(run=_run_train)


def _run_train(args: argparse.Namespace) -> None:
    import json

    from vla.bench.train import bench_train
    from vla.vlm_commands import as_device

    result = bench_train(
        args.size,
        device=as_device(args.device),
        precision=args.precision,
        mode=args.mode,
        method=args.optimiser,
        batch=args.batch,
        cameras=args.cameras,
        repeats=args.repeats,
        recompute=args.recompute,
        compile=args.compile,
        theirs=not args.alone,
    )
    print(json.dumps(result.as_json(), indent=2) if args.json else result)


def _add_draws(kinds) -> None:
    parser = kinds.add_parser(
        "draws",
        help="the loss after equal time with 1, 4 and 8 draws per reading of the prefix",
        description="Train the policy of CONFIG with each number of draws, in turns, and write the "
        "losses on held-out episodes after equal time: draws.json and draws.png. Every field of "
        "the config can be overridden by its name, as in `vla train`.",
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument(
        "--counts", type=positive, nargs="+", default=[1, 4, 8], metavar="N", help="default: 1 4 8"
    )
    parser.add_argument(
        "--seconds", type=float, default=300.0, metavar="S", help="for each (default: 300)"
    )
    parser.add_argument("--points", type=positive, default=6, metavar="N", help="default: 6")
    parser.add_argument("--folder", type=Path, default=Path("outputs/draws"), metavar="DIR")
    parser.set_defaults(run=_run_draws, takes_rest=True)


def _run_draws(args: argparse.Namespace) -> None:
    import json

    from vla.bench.draws import bench_draws, plot
    from vla.config import TrainConfig, load_config

    config = load_config(args.config, args.overrides)
    if not isinstance(config, TrainConfig):
        raise ValueError(f"{args.config} trains no policy; draws belong to a TrainConfig")
    bench = bench_draws(config, args.counts, seconds=args.seconds, points=args.points)
    args.folder.mkdir(parents=True, exist_ok=True)
    written = args.folder / "draws.json"
    temporary = written.with_suffix(".tmp")
    temporary.write_text(json.dumps(bench.as_json(), indent=2) + "\n", encoding="utf-8")
    temporary.replace(written)
    print(bench)
    print(f"in {written} and {plot(bench, args.folder / 'draws.png')}")
