"""How a command of the client ends: silently, or with one line that carries a stable code.

An error that nobody foresaw is told by its kind and the lines of code it went through, never by its text
or by values: those could hold a piece of the data set.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from cli.i18n import _

_QUIET = {
    "HF_HUB_OFFLINE": "1",  # models are on this machine or refused
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn every error into one line on stderr and exit code 1; evidence that was kept has a line before."""
    from client.errors import ClientError
    from client.i18n import translate

    try:
        yield
        sys.stdout.flush()  # here, where a reader that has gone is still an error of ours
    except ClientError as error:
        if error.evidence is not None:
            print("dpfl:", _("what was announced and held: {path}", path=error.evidence), file=sys.stderr)
        _end(error.code, translate(error.message, **error.members))
    except KeyboardInterrupt:
        print("dpfl: [interrupted]", _("stopped; the same command goes on where it was"), file=sys.stderr)
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except BrokenPipeError:  # whoever read our output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # noqa: BLE001  the last place: nothing of the error's text may be shown
        _end("internal_error", f"{type(error).__name__} {_where(error)}")


def quiet_libraries() -> None:
    """Silence what libraries print by themselves: a warning may tell the length of a text."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)


def _end(code: str, text: str) -> None:
    print(f"dpfl: [{code}] {' '.join(text.split())}", file=sys.stderr)
    raise typer.Exit(1)


def _where(error: Exception) -> str:
    """Name where it happened; with DPFL_DEBUG all the way there. Only names and line numbers."""
    frames = traceback.extract_tb(error.__traceback__)
    shown = frames if os.environ.get("DPFL_DEBUG") else frames[-1:]
    return " > ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in shown)
