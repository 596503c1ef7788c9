"""`vla bench`: speeds of this package beside another one's."""

import argparse

from vla.cli_vlm import positive


def add_bench(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "bench",
        help="speeds, beside another implementation in the same run",
        description="Measure speeds with random weights, beside another implementation's in the "
        "same run. Needs the dev dependencies.",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    _add_vlm(kinds)
    return parser


def _add_vlm(kinds) -> None:
    parser = kinds.add_parser(
        "vlm",
        help="a PaliGemma's prefill and decoding, beside transformers'",
        description="Time prefill and decoding of PaliGemma-3B at 224 pixels, batch 1, beside "
        "transformers' generate with the same weights, and what share they reach of the machine's "
        "matmul and memory bandwidth. Takes 8 GB of memory and minutes.",
    )
    parser.add_argument(
        "--size", choices=("full", "small"), default="full", help="small: a toy, in seconds"
    )
    parser.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
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
    result = bench_vlm(sizes, side, device=device, repeats=args.repeats, tokens=args.tokens)
    print(json.dumps(result.as_json(), indent=2) if args.json else result)
