"""Errors that a user may see. A message names the thing, what was expected, what was found and what to do.

Each class also is the built-in class that a caller would expect (`ValueError`, `RuntimeError`, `OSError`).
"""

from __future__ import annotations


class RahfError(Exception):
    """Base of every error that a user can repair by its message. Any other exception from `rahf` is a bug."""


class ArgumentError(RahfError, ValueError):
    """A command or a function was given a value that it cannot use; the message says what it expects."""


class UnknownNameError(ArgumentError, KeyError):
    """No score, heatmap or other choice has this name; the message suggests the nearest."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would put it in quotes


class NotPredicted(ArgumentError):
    """A score, heatmap or words are asked for that the model does not predict; the message lists what it does."""


class ForkedProcess(RahfError, RuntimeError):
    """A model is used in a process forked from one that has loaded a model; the message says what to do."""


class ConfigError(RahfError, ValueError):
    """A config has an unknown field or a value of the wrong kind; the message says where and what to write."""


class TrainError(RahfError, RuntimeError):
    """A run cannot start or go on; the message says why and what to do."""


class CheckpointError(RahfError, RuntimeError):
    """A checkpoint cannot be written, read, or does not fit the model; the message says what to do."""


class Damaged(CheckpointError):
    """The files of a checkpoint differ from what was written."""


class TokenizerError(RahfError, ValueError):
    """A vocabulary cannot be read or cannot write what is needed; the message names its file."""


class VocabularyMissing(TokenizerError, FileNotFoundError):
    """There is no vocabulary where one is expected; the message names the place."""


class ImageError(RahfError, ValueError):
    """An image cannot be used; the message is one line that names it and says what is wrong."""


class NotFinite(RahfError, ValueError):
    """A network predicts NaN or infinity; the message names the example.

    Attributes:
      output: what is not finite, in words.
    """

    output: str = "outputs"


class ExportError(RahfError, ValueError):
    """An exported file cannot be written or read, or fails a check; the message names it and says why."""


class NotDifferentiable(RahfError, TypeError):
    """A derivative is asked for that an exported file does not hold; the message says which it does."""


class ScoreError(RahfError, ValueError):
    """An input or output of scoring cannot be used; the message says what is wrong and what to do."""


class PretrainedError(RahfError, RuntimeError):
    """Published weights are missing, unreadable, or of another network; the message names file and tensor."""


class DataError(RahfError, ValueError):
    """Annotations, a record or a loader's saved position cannot be used; the message says which and why."""


class DatasetError(RahfError, ValueError):
    """A prepared dataset cannot be read or written; the message says what is wrong and what to do."""


class WorkerFailure(RahfError, RuntimeError):
    """A data worker process failed repeatedly; the message says why and at which record."""


class ExampleError(RahfError, ValueError):
    """The bytes are not a `tf.train.Example`; the message says why."""


class NotRegularFile(RahfError, OSError):
    """A FIFO, device or socket stands where a file is expected; the message names it."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class ArgumentTypeError(RahfError, TypeError):
    """A function was given a thing of a kind that it does not take; the message says which kinds it takes."""


class FolderInUse(RahfError, RuntimeError):
    """Another process works in a folder; the message names the folder and the process."""


class DiskFull(RahfError, OSError):
    """A file cannot be written because no space is left; the message names the file."""

    def __str__(self) -> str:
        return str(self.strerror)  # without the number that OSError puts before it


class ExtraMissing(RahfError, ImportError):
    """A part of `rahf` needs packages of an extra; the message says which, and how to install them."""


class AnnotateError(RahfError, RuntimeError):
    """The annotation application cannot do what was asked; the message says why and what to do."""
