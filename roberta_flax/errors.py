"""Errors that the user can mend: one line each, saying what was given, what was expected, what to do.

The command line prints these without a traceback and exits with status 1; anything else is a bug and
keeps its traceback.
"""


class RobertaFlaxError(Exception):
    """Base of every error that roberta_flax and convert raise on purpose."""


class InputError(RobertaFlaxError, ValueError):
    """Text, token ids or arguments that the model cannot take."""


class CheckpointError(RobertaFlaxError, ValueError):
    """A file or directory that is not the checkpoint it should be."""


class DownloadError(RobertaFlaxError, OSError):
    """A released file that could not be fetched whole."""
