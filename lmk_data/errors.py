"""The error tree: what a command line turns into one line on stderr and exit code 1.

    LmkError
    ├── UserError      the caller's mistake: a flag, a label table, a folder
    ├── DatasetError   a file of a published dataset is missing, short, or contradicts another
    ├── StorageError   the storage failed; what was complete is kept, run it again to resume
    ├── BuildError     a build could not finish; what was complete is kept
    │   └── DeadWorkerError    a process that ran a task died
    └── TrainingError  training cannot continue; the last good checkpoint is kept

Every message says what was wrong, where, and what to do. A bad image is none of these: it is a value
(`lmk_data.dataset.format.Rejection`), counted and indexed, and the build continues.
"""

import errno

_SHOWN_CHARACTERS = 120


class LmkError(Exception):
    """Base of every error this project raises on purpose."""


class UserError(LmkError):
    """The caller's mistake: a flag, a label table, a folder."""


class DatasetError(LmkError):
    """A file of a dataset is missing, short, or contradicts another one."""


class StorageError(LmkError):
    """The storage failed for a reason that is not a bad image; run the command again to resume."""


class BuildError(LmkError):
    """A build could not finish; finished shards are kept."""


class DeadWorkerError(BuildError):
    """A process that ran a task died, or ran out of memory."""


class TrainingError(LmkError):
    """Training cannot continue; the last good checkpoint is kept."""


class TooLargeError(OSError):
    """A file, or the answer of a server, has more bytes than one of its kind may have; reading it again is no use."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(errno.EFBIG, f"larger than the {max_bytes:,} bytes that it may have")


def storage_failure(error: OSError, location: str) -> StorageError:
    """Return the StorageError for a failure of the storage at `location`, a path or URL."""
    hint = "is the storage there? run it again to resume"
    if isinstance(error, TooLargeError):
        hint = "is this the right file?"
    return StorageError(f"{error.filename or location}: {error.strerror or error}; {hint}")


def missing_extra(what: str, extra: str, reason: str) -> UserError:
    """Return the error for an optional dependency that is not installed.

    `what` needs it, `extra` names the extras that bring it, `reason` says what is missing. The distribution is not on
    the package index yet, so the command installs from a clone.
    """
    return UserError(f"{what} needs the extra `{extra}` ({reason}): run `pip install '.[{extra}]'` in the clone of lmk")


def one_line(error: BaseException) -> str:
    """Return what an error says in one short line without control characters; the name of its type if it is silent."""
    said = "".join(c if c.isprintable() else " " for c in str(error))
    line = " ".join(said.split()) or type(error).__name__
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."
