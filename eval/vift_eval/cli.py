"""What the commands share: a mistake of the user is one line and exit status 2, never a stack trace."""

import argparse


class UserError(Exception):
    """Something the user can put right; shown as one line, exit status 2."""


class OneLineParser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help shows the options)\n")


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
