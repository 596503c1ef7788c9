"""A real browser, headless, for the tests of the report."""

import shutil
import subprocess
from pathlib import Path

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000")


def open_page(page: Path, profile: Path) -> str:
    """The document of `page` after its scripts have run and its videos have loaded.

    profile: a folder for the browser's own files. Fails where no browser is installed.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "the report is checked in a real browser: apt-get install chromium"
    command = [browser, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.resolve().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
