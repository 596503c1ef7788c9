"""The page at `/`: one HTML file, which may load nothing and run only what stands in it."""

import base64
import functools
import hashlib
import re
from importlib import resources

from starlette.responses import Response

_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@functools.cache
def page_response() -> Response:
    html = (resources.files("vla.serving") / "page.html").read_text(encoding="utf-8")
    policy = _POLICY.format(script=_digests(html, "script"), style=_digests(html, "style"))
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    return Response(html, headers=headers, media_type="text/html")


def _digests(html: str, tag: str) -> str:
    """The CSP sources that allow exactly the inline blocks of `html`."""
    blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    hashes = (hashlib.sha256(block.encode()).digest() for block in blocks)
    return " ".join(f"'sha256-{base64.b64encode(h).decode()}'" for h in hashes)
