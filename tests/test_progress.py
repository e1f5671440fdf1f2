"""Progress on a terminal, in a log, and where it is not wanted."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading

import pytest

from dmnn_convert.progress import Progress, quiet, say, tracked

CODE = """
import time
from dmnn_convert.progress import tracked, say
for i in tracked(range(5), "things", shown={shown}):
    time.sleep(0.15)
say("a line")
"""


def on_terminal(shown, **environment):
    """Return what a process writes to a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    found = []

    def read():
        while True:
            try:
                found.append(os.read(ours, 1 << 16))
            except OSError:  # the other end is closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    code = [sys.executable, "-c", CODE.format(shown=shown)]
    subprocess.run(code, stderr=theirs, env={**os.environ, "TERM": "xterm", **environment})
    os.close(theirs)
    reader.join(20)
    os.close(ours)
    return b"".join(found).decode()


@pytest.mark.slow
def test_a_terminal_has_a_bar_without_colours_and_a_dumb_one_has_lines():
    text = on_terminal(shown=True, NO_COLOR="1")
    assert "things" in text
    assert "\r" in text.replace("\r\n", "")
    assert "\x1b[" not in text.replace("\x1b[A", "")
    assert "a line" in text
    text = on_terminal(shown=True, TERM="dumb")
    assert text == "a line\r\n"  # less than a minute
    assert "things" in on_terminal(shown=None)
    assert on_terminal(shown=False) == "a line\r\n"


def test_a_log_has_plain_lines_a_minute_apart(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr("dmnn_convert.progress.time.monotonic", lambda: next(clock))
    notes = []

    def note():
        notes.append(1)
        return "loss 1.5"

    with Progress("epoch 1/2", 6000, shown=True, unit="images", done=1000) as progress:
        for _ in range(5):
            progress.update(1000, note)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "epoch 1/2: 4,000/6,000 images after 1.2 minutes; loss 1.5\n"
    assert len(notes) == 1  # reading a loss waits for the device: only where it is shown


def test_a_library_call_writes_no_lines_to_a_log(capsys, monkeypatch):
    monkeypatch.setattr("dmnn_convert.progress.MINUTE", 0.0)
    assert list(tracked(iter("abc"), "letters", shown=None)) == [*"abc"]
    assert capsys.readouterr().err == ""
    assert list(tracked(iter("abc"), "letters", shown=True)) == [*"abc"]
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(" after")[0] for line in shown] == [f"letters: {i}" for i in (1, 2, 3)]


def test_quiet_holds_inside_its_block(capsys, monkeypatch):
    monkeypatch.setattr("dmnn_convert.progress.MINUTE", 0.0)
    with quiet():
        assert list(tracked("abc", "letters", shown=True)) == [*"abc"]
        say("nothing")
    assert capsys.readouterr().err == ""
    say("something")
    assert capsys.readouterr().err == "something\n"
