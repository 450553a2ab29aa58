"""Headless Chromium, as tests of pages use it."""

import subprocess
from pathlib import Path


def browse(chromium: str, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run headless Chromium; it may not write anything on the console."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    options += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--hide-scrollbars"]
    options += ["--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=8000"]
    done = subprocess.run([chromium, *options, *arguments], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done
