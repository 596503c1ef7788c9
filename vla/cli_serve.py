"""`vla serve`: models behind HTTP."""

import argparse
import os
from pathlib import Path

from vla.cli_vlm import add_compile, positive

DEFAULT_PORT = 8000  # where OpenAI-style servers are looked for


def add_serve(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "serve",
        help="a model behind HTTP",
        description="Run a server. It listens on this machine alone unless told otherwise.",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    _add_vlm(kinds)
    return parser


def _add_vlm(kinds) -> None:
    parser = kinds.add_parser(
        "vlm",
        help="a PaliGemma: OpenAI's endpoints, and a page to try it",
        description="Serve the PaliGemma in DIR: /v1/chat/completions, /v1/completions and "
        "/v1/models as OpenAI's clients expect them, a page at /, and /healthz, /readyz, /metrics. "
        "Answers that wait are generated side by side.",
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a VLM's folder")
    parser.add_argument("--name", help="what requests call it (default: the folder's name)")
    parser.add_argument("--host", default="127.0.0.1", help="default: this machine alone")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 takes a free one")
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="holds the key that requests must carry (also VLA_API_KEY); needed beyond localhost",
    )
    parser.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the weights (default: float32 on a CPU, bfloat16 elsewhere)",
    )
    add_compile(parser)
    parser.add_argument(
        "--codec",
        type=Path,
        metavar="FILE",
        help="the mask codec, such as vae-oid.npz (default: the one in DIR, if any)",
    )
    parser.add_argument("--max-batch", type=positive, default=16, metavar="N", help="side by side")
    parser.add_argument(
        "--max-wait",
        type=float,
        default=5.0,
        metavar="MS",
        help="how long an idle model waits for company (default: 5 ms)",
    )
    parser.add_argument(
        "--queue", type=positive, default=128, metavar="N", help="answers that may wait"
    )
    parser.add_argument(
        "--allow-remote-images",
        action="store_true",
        help="fetch image_urls of public web servers; else only data: URIs are taken",
    )
    parser.add_argument(  # also understood before the KIND, where `vla` adds it
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show tracebacks of user errors too (also VLA_DEBUG=1)",
    )
    parser.set_defaults(run=_run_vlm)


def _run_vlm(args: argparse.Namespace) -> None:
    from vla.serving.access import check_bind, read_key

    if not 0 <= args.port <= 65535:
        raise ValueError(f"--port: expected 0 to 65535, got {args.port}")
    if not 0 <= args.max_wait <= 1000:
        raise ValueError(f"--max-wait: expected 0 to 1000 milliseconds, got {args.max_wait:g}")
    key = read_key(args.api_key_file, os.environ)
    check_bind(args.host, key)

    from dataclasses import replace

    from vla.serving.app import Settings, create_app
    from vla.serving.engine import Engine
    from vla.serving.limits import Limits
    from vla.serving.remote import Remote
    from vla.serving.server import bind, run

    limits = replace(Limits(), queue=args.queue)
    settings = Settings(
        name=args.name or args.model.resolve().name,
        key=key,
        remote=Remote(limits.body) if args.allow_remote_images else None,
        max_batch=args.max_batch,
        patience=args.max_wait / 1000,
        limits=limits,
    )
    with bind(args.host, args.port) as listener:
        app = create_app(Engine(_load(args)), settings)
        host = f"[{args.host}]" if ":" in args.host else args.host
        url = f"http://{host}:{listener.getsockname()[1]}/"
        run(app, listener, limits, f"{settings.name} at {url}")


def _load(args: argparse.Namespace):
    """The VLM, with a mask codec where one is given or stands beside its weights."""
    from backbone.mask_codec import load_codec
    from vla.vlm_commands import load

    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    vlm = load(args)
    if args.codec is not None:
        vlm.codec = load_codec(args.codec).to(vlm.device)
    return vlm
