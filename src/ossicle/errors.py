"""Define every error that Ossicle raises on purpose; the command line prints them without a traceback."""


class OssicleError(Exception):
    """Base class of all errors that a user can fix: the message says what is wrong, where, and what to do."""


class ConfigError(OssicleError, ValueError):
    """A recipe or an override is invalid; the message names the field."""


class DataError(OssicleError, ValueError):
    """The data cannot be used as it is; the message names the file and the line."""


class ManifestError(DataError):
    """A line of a manifest is invalid; the message names the file, the line and the field."""


class AudioError(DataError):
    """An audio file cannot be read; the message names the file."""


class MakeError(DataError):
    """The audio of one utterance could not be generated; the utterance is skipped, or the run stops."""


class CorpusError(DataError):
    """A corpus does not have the expected layout; the message names the file."""


class WordFileError(DataError):
    """A TextGrid or CTM file is invalid; the message names the file and the line."""


class AlignmentError(DataError):
    """A transcript cannot be aligned with its audio."""


class HypothesesError(DataError):
    """A file of hypotheses is invalid, or belongs to another model or manifest."""


class ModelError(OssicleError, ValueError):
    """An encoder, an LLM or a projector cannot be loaded or does not fit the others."""


class CheckpointError(ModelError):
    """A checkpoint is missing, damaged, or was trained with other models or settings."""


class TrainingError(OssicleError, RuntimeError):
    """Training cannot go on: the loss is not finite, or a file cannot be written."""


class CacheError(OssicleError, ValueError):
    """A cache folder is damaged or was created for a different model or setting."""


class ContextError(DataError):
    """A sequence is longer than the LLM's context."""


class MissingPackageError(OssicleError, ImportError):
    """An optional package is not installed; the message has the command that installs it."""


class VoiceError(OssicleError, RuntimeError):
    """The speech synthesiser is missing or failed."""


class CometError(OssicleError, RuntimeError):
    """The environment that computes COMET is missing or failed."""
