"""The errors a user can cause, and how they leave the command line.

    PretrainError                 one line (or one line a problem), exit code 2
    ├── ConfigError               a config or an option is wrong, or contradicts another
    ├── DataError                 text is missing, empty, undecodable, or prepared data is damaged
    ├── CheckpointError           a checkpoint is cut short, or belongs to another run
    ├── ExportError               a model folder cannot be read or written
    └── TrainingError             the loss, a gradient or a weight is NaN or infinite

Anything else that escapes is a bug: it keeps its traceback and exits with 1.
"""


class PretrainError(Exception):
    """A mistake the user can put right; the message names the file or key and the values."""

    exit_code = 2


class ConfigError(PretrainError):
    """A configuration is missing, misspelt or contradictory."""


class DataError(PretrainError):
    """A source cannot be read, is empty, or its prepared form is damaged."""


class CheckpointError(PretrainError):
    """A checkpoint cannot be written, read, or belongs to another run."""


class ExportError(PretrainError):
    """A model folder is incomplete, ambiguous, or not in a format that we read."""


class TrainingError(PretrainError):
    """Training cannot go on: the loss, a gradient or a weight is NaN or infinite."""
