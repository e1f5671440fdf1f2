"""The errors: each names the call, what it got, and the remedy."""


class DmnnError(Exception):
    """Base of every error that this library raises on purpose."""


class ArgumentError(DmnnError, ValueError):
    """An argument is of the wrong type or outside its range."""


class UnknownArchitectureError(ArgumentError):
    """No architecture goes by that name."""


class ConversionError(DmnnError):
    """The model cannot be converted as it stands."""


class NoBlocksFoundError(ConversionError):
    """The model has no block that any split fits; the message lists the nearest misses."""


class AlreadyConvertedError(ConversionError):
    """The model already holds multi-path blocks."""


class GateMismatchError(DmnnError, ValueError):
    """Gates do not belong to the model or table that they were handed to."""


class RecordingError(DmnnError, RuntimeError):
    """Paths were asked for something that the recorded forward passes do not hold."""


class TrainingError(DmnnError):
    """Training cannot continue."""


class CheckpointError(DmnnError):
    """A file or directory of weights cannot be read, or does not fit the model."""


class PretrainedError(DmnnError):
    """The zoo's own weights could not be fetched."""
