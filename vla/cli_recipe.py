"""`vla chain`, `vla transfer` and `vla ablate`: PaliGemma's recipe from the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["RECIPE_COMMANDS"]


def _add_chain(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "chain",
        help="several runs one after the other, such as the stages of PaliGemma",
        description="Train the runs in CONFIG… in this order, each going on from its newest "
        "checkpoint. Started again after it was stopped or killed, it makes what is left. Fields "
        "after the files override those of every run: --device cuda.",
        usage="vla chain CONFIG [CONFIG ...] [--quick] [--field VALUE ...] [--debug]",
        allow_abbrev=False,
    )
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of a few samples; checks that it runs"
    )
    parser.set_defaults(run=_run_chain, takes_rest=True)
    return parser


def _run_chain(args: argparse.Namespace) -> None:
    from vla.training.chain import chain

    for folder in chain(args.configs, args.overrides, quick=args.quick):
        print(f"done: {folder}", flush=True)


RECIPE_COMMANDS = [_add_chain]
