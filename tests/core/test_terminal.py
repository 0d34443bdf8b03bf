"""Output never ends the work: other encodings, closed pipes, full disks; text is shown as it is, on one line."""

import errno
import io
import os

import pytest

from rahf.core import names, terminal


class Broken(io.StringIO):
    """A stream that cannot be written."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_an_encoding_lacks_becomes_a_question_mark():
    file = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors="strict")
    terminal.LastingStream(file).write("✗ café → b.png")
    file.flush()
    assert file.buffer.getvalue() == "? café ? b.png".encode("latin-1")


def test_a_stream_that_cannot_be_written_is_noted_and_left():
    stream = terminal.LastingStream(Broken())
    print("a", file=stream)
    print("b", file=stream, flush=True)
    assert stream.error.errno == errno.ENOSPC


def test_a_pipe_without_a_reader_is_silent_to_the_end():
    read, write = os.pipe()
    os.close(read)
    stream = terminal.LastingStream(os.fdopen(write, "w"))
    print("x" * 100_000, file=stream, flush=True)
    assert isinstance(stream.error, BrokenPipeError)
    stream.close()  # flushes what is left, as Python does at exit


def test_a_process_without_stdout_prints_nowhere():
    stream = terminal.LastingStream(None)
    print("x", file=stream, flush=True)
    assert stream.error is None
    stream.close()


def test_the_streams_of_the_process_come_back(capsys):
    import sys

    before = sys.stdout, sys.stderr
    with pytest.raises(KeyError), terminal.lasting_streams():
        terminal.say("a\nb", stderr=True)
        raise KeyError
    assert (sys.stdout, sys.stderr) == before and capsys.readouterr().err == "a b\n"


@pytest.mark.parametrize("text", ["runs/[final]", "p[/q]", "[bold]x", ":cat:.png", "a  b.png"])
def test_a_console_shows_text_as_it_is(text, capsys):
    terminal.console().print(text, soft_wrap=True)
    assert capsys.readouterr().out == f"{text}\n"


@pytest.mark.parametrize(
    "text, line",
    [
        ("\x1b]0;OWNED\x07\x1b[2JMIT\nweights", "\ufffd]0;OWNED\ufffd\ufffd[2JMIT weights"),
        ("a\r\n\tb\u2028c\x85d", "a b c d"),
        ("\u202egnp.a", "\ufffdgnp.a"),
        ("a  b\u3000c", "a  b c"),
        (17, "17"),
    ],
)
def test_one_printable_line(text, line):
    assert names.one_line(text) == line


def test_a_long_line_is_cut():
    assert names.one_line("abcdef", 4) == "abc…"
