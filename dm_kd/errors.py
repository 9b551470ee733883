"""What a user can put right: errors with the exit codes of the command line.

Every command ends with 0 (done) or one of the codes below; `run.main` turns these exceptions into
`error: ...` lines without a traceback.
"""

import difflib


class UserError(Exception):
    """Something the user typed or forgot. Exit code 2.

    The message reads: what, then where (one line per keyword), then what to do (`hint`).
    At most six lines in all.
    """

    exit_code = 2

    def __init__(self, what: str, hint: str = "", **where: object):
        lines = [f"error: {what}"]
        lines += [f"  {name:<8} {value}" for name, value in where.items()]
        if hint:
            lines.append(f"  {'try':<8} {hint}")
        super().__init__("\n".join("\n".join(lines).splitlines()[:6]))


class LockedError(UserError):
    """Another live process writes here. Exit code 3."""

    exit_code = 3


class DivergedError(UserError):
    """A loss became NaN or infinite. Exit code 4."""

    exit_code = 4


class DamagedError(UserError):
    """Bytes are bad: truncated, digest differs, malformed. Exit code 5."""

    exit_code = 5


class StorageError(UserError):
    """No space left, or not writable. Exit code 6."""

    exit_code = 6


class Stopped(Exception):
    """A signal asked the process to stop; everything is saved. Exit code 128 + signal."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_code = 128 + signal_number


def nearest(name: str, known) -> str:
    """A hint that names the closest known spellings, or all of them if none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    shown = close or known[:12]
    return ("did you mean " if close else "one of ") + ", ".join(shown)


def refuse_difference(old: dict, new: dict, folder: object, what: str) -> None:
    """Compare settings.

    Raises:
        UserError: some differ; shows the first two as `name: old -> new`.
    """
    differing = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    if differing:
        shown = [f"{k}: {old.get(k)} -> {new.get(k)}" for k in differing]
        more = f" (+{len(shown) - 2} more)" if len(shown) > 2 else ""
        where = {"changed": shown[0][:110]}
        if len(shown) > 1:
            where["and"] = shown[1][:110] + more
        raise UserError(what, folder=folder, **where,
                        hint="another --out, or the settings as they were")
