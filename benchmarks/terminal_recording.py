"""Run commands on a pseudo-terminal, and render its screen."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shlex
import struct
import subprocess
import termios
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pyte
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

_FONTS = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"  # instead of a downloaded font


class RecordedTerminal:
    """A terminal that runs commands one after the other.

    Args:
        folder: working directory of the commands.
        environment: environment of the commands.
        columns: columns of the terminal.
        rows: rows of the terminal; lines that scroll out are lost.
    """

    def __init__(self, folder: Path, environment: dict[str, str], columns: int = 108, rows: int = 60) -> None:
        self.folder, self.environment = folder, {**environment, "TERM": "xterm-256color"}
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)

    def run(self, *command: str, each_time: Callable[[], None] = lambda: None) -> None:
        """Run a command, shown after a shell prompt.

        Args:
            command: the command and its arguments.
            each_time: called when the screen changes.

        Raises:
            RuntimeError: the command fails.
        """
        self.stream.feed(f"\x1b[32m$\x1b[0m \x1b[1m{shlex.join(command)}\x1b[0m\r\n".encode())
        here, there = pty.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", self.screen.lines, self.screen.columns, 0, 0))
        with subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdin=there, stdout=there, stderr=there
        ) as process:
            os.close(there)
            while shown := _read(here):
                self.stream.feed(shown)
                each_time()
        os.close(here)
        if process.returncode:
            raise RuntimeError(f"{shlex.join(command)} ended with {process.returncode}: {self.text()}")

    def text(self) -> str:
        """Return the text on the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def picture(self, title: str) -> str:
        """Return the screen as an SVG without external resources."""
        n_lines = self.text().count("\n") + 1
        console = Console(record=True, width=self.screen.columns, file=io.StringIO(), force_terminal=True)
        for row in range(n_lines):
            shown = [self.screen.buffer[row][column] for column in range(self.screen.columns)]
            runs = groupby(shown, key=lambda character: (character.bold, character.fg))
            parts = [
                ("".join(character.data for character in run), f"{'bold ' if bold else ''}{_colour(colour)}")
                for (bold, colour), run in runs
            ]
            line = Text.assemble(*parts, no_wrap=True)
            line.rstrip()
            console.print(line, soft_wrap=True)
        console.print()  # the picture would cut off the last line below its baseline
        drawn = console.export_svg(title=title, theme=MONOKAI)
        drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
        return drawn.replace("Fira Code, monospace", _FONTS).replace("font-family: arial;", "font-family: sans-serif;")


def _read(terminal: int) -> bytes:
    """Read the output of a terminal; empty when its program has ended, which Linux signals by an error."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def _colour(name: str) -> str:
    """Convert the name of a colour from pyte to rich."""
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    return re.sub("^bright", "bright_", name).replace("brown", "yellow")
