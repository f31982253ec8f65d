"""From ``sys.argv`` to an exit code, with one line on stderr for whatever goes wrong."""

from __future__ import annotations

import atexit
import codecs
import errno
import gc
import os
import signal
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

from spectrascope.cli.blame import users_place
from spectrascope.cli.job import silence_others
from spectrascope.errors import SpectrascopeError
from spectrascope.text import printable

USAGE_ERROR = 2
COULD_NOT_MEASURE = 3
INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT
BROKEN_PIPE = 141  # 128 + SIGPIPE

# What the file system may say of any path that was named, wherever it is touched first.
_NO_BUGS = (errno.ENAMETOOLONG, errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP)
_PLAIN = {
    "Value error, ": "",
    "Input should be a valid integer, unable to parse string as an integer": "not a whole number",
    "Input should be a valid number, unable to parse string as a number": "not a number",
    "Input should be greater than or equal to": "must be at least",
    "Input should be less than or equal to": "must be at most",
    "Input should be": "must be",
}
"""Of what typer and its libraries say of a value: what a user would."""
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what stands after ``spectrascope``; ``sys.argv`` when ``None``.

    Returns:
        The exit code.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)  # the interpreter's last search for garbage takes a second where PyTorch is loaded
    _fill_closed_descriptors()
    with _seeing_interrupts() as interrupts:
        try:
            silence_others()
            code = _run(argv)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            _drop_stdout()
            return BROKEN_PIPE
        except KeyboardInterrupt:
            return _fail("interrupted", INTERRUPTED)
        except Exception as error:
            if interrupts:
                return _fail("interrupted", INTERRUPTED, error)
            if isinstance(error, SpectrascopeError):
                return _fail(str(error), error.exit_code, error)
            return _report_unexpected(error)
        return code


@contextmanager
def _seeing_interrupts() -> Iterator[list[int]]:
    """Collect the Ctrl-C's there were: a library that swallows one, as while it is imported, fails later of that."""
    seen: list[int] = []
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or current_thread() is not main_thread():
        yield seen
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(argv: list[str]) -> int:
    import typer

    from spectrascope.cli.app import app

    _survive_narrow_encodings()
    command = typer.main.get_command(app)
    if "_SPECTRASCOPE_COMPLETE" in os.environ:  # a shell asks what may come next
        command(prog_name="spectrascope")
    try:
        with command.make_context("spectrascope", argv, obj=tuple(argv)) as context:
            command.invoke(context)
    except typer.Exit as leave:
        return leave.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    return 0


def _report_unexpected(error: Exception) -> int:
    # typer raises its usage errors from its own copy of click or from click itself, depending on its version;
    # both have ``format_message``.
    describe = getattr(error, "format_message", None)
    if describe is not None:
        command = getattr(getattr(error, "ctx", None), "command_path", "spectrascope")
        message = str(describe())
        for said, plain in _PLAIN.items():
            message = message.replace(said, plain)
        message = message.rstrip(".")
        return _fail(f"{message} (see `{command} --help`)", USAGE_ERROR)
    if isinstance(error, OSError) and error.errno in _NO_BUGS:
        return _fail(f"{error.filename or 'the output'}: {error.strerror}", USAGE_ERROR, error)
    if _is_out_of_memory(error):
        return _fail(
            f"out of memory ({_one_line(str(error)) or type(error).__name__}): "
            "try a smaller --micro-batch, such as --micro-batch 32, or fewer --layers",
            COULD_NOT_MEASURE,
            error,
        )
    if place := users_place(error):
        return _fail(f"{place} raised {type(error).__name__}: {error}", COULD_NOT_MEASURE, error)
    return _fail(f"{type(error).__name__}: {error}", INTERNAL_ERROR, error, label="internal error (please report)")


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)


def _fail(message: str, code: int, error: Exception | None = None, *, label: str = "error") -> int:
    if error is not None and os.environ.get("SPECTRASCOPE_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    print(f"{label}: {_one_line(message)}", file=sys.stderr)
    return code


def _one_line(message: str) -> str:
    """Join lines, and escape control characters that a file name could smuggle to the terminal."""
    return printable(" ".join(message.split()))


_PLAIN_SIGNS = {
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "δ": "delta",
    "ε": "epsilon",
    "ζ": "zeta",
    "κ": "kappa",
    "λ": "lambda",
    "ν": "nu",
    "ρ": "rho",
    "σ": "sigma",
    "χ": "chi",
    "Δ": "Delta",
    "Λ": "Lambda",
    "Σ": "Sigma",
    "Φ": "Phi",
    "±": "+-",
    "×": "x",
    "·": "*",
    "−": "-",
    "–": "-",
    "—": "-",
    "─": "-",
    "│": "|",
    "‖": "||",
    "√": "sqrt",
    "≈": "~",
    "∝": "~",
    "≤": "<=",
    "≥": ">=",
    "→": "->",
    "…": "...",
    "½": "1/2",
    "²": "^2",
    "³": "^3",
    "ᵀ": "^T",
    **dict(zip("▁▂▃▄▅▆▇█", "12345678", strict=True)),
}
"""What stands for a sign where the terminal's encoding lacks it: σ and β as "?" both would tell nobody which."""


def _spelt_plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(_PLAIN_SIGNS.get(sign) or _without_marks(sign) or "?" for sign in lost), error.end


def _without_marks(sign: str) -> str:
    """Of ¹, ₂ and é what ASCII has."""
    return unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()


def _survive_narrow_encodings() -> None:
    """Let a terminal that cannot show β print its name instead of failing."""
    codecs.register_error("spelt-plainly", _spelt_plainly)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="spelt-plainly")


def _fill_closed_descriptors() -> None:
    """Let nobody's file be taken for a stream that the caller has closed; what is said on stderr is lost then."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # as long as the process


def _drop_stdout() -> None:
    """Send what is left to nowhere, or the interpreter complains about the closed pipe on its way out."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, sys.stdout.fileno())
    os.close(descriptor)
