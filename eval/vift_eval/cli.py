"""What the commands share: a mistake of the user is one line and exit status 2, never a stack trace."""

import argparse
import os
import sys


class UserError(ValueError):
    """Something the user can put right; shown as one line, exit status 2."""


class OneLineParser(argparse.ArgumentParser):
    def __init__(self, prog: str, description: str):
        super().__init__(prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help shows the options)\n")


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def run(prog: str, command, *args, stopped: str | None = None) -> int:
    """
    The exit status of `command(*args)`: 2 after a mistake of the user, 130 after Ctrl-C.

    Args:
        stopped: what a user reads after Ctrl-C.
    """
    try:
        command(*args)
    except BrokenPipeError:  # the reader left, as in `vift-demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        print(f"{prog}: error: {first_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if stopped is not None:
            print(f"{prog}: {stopped}", file=sys.stderr)
        return 130
    return 0
