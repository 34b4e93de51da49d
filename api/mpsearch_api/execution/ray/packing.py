"""Calls and their outcomes as bytes; what is large and immutable travels once, not with each call.

Pickle's persistent ids stand for long `bytes` objects wherever they are in the arguments, so that
the model that every part of a profile works on is sent to the cluster once.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Packed", "Parcels", "outcome_of", "run_packed", "unpacked"]

LARGE = 64 * 1024
"""Bytes from which an argument travels apart; below, naming it costs more than sending it."""


@dataclass(frozen=True)
class Packed:
    """A call, ready to be sent.

    Attributes:
        body: Function and arguments.
        keys: Parcels it needs.
        new: Those that were not sent before, key -> content.
    """

    body: bytes
    keys: tuple[str, ...]
    new: Mapping[str, bytes] = field(default_factory=dict)


class Parcels:
    """Large arguments: which were sent, which are still needed."""

    def __init__(self) -> None:
        """Start with none."""
        # Objects are kept, or another could get their address, which stands for them here.
        self._seen: dict[int, tuple[bytes, str]] = {}
        self._users: dict[str, int] = {}
        self._last: frozenset[str] = frozenset()

    def pack(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Packed:
        """Pack a call.

        Args:
            function: What is called; importable by name where it runs.
            args: Positional arguments.
            kwargs: Arguments by name.

        Returns:
            The call; its parcels count as sent and in use.
        """
        written = io.BytesIO()
        pickler = _Pickler(written, self._key_of)
        pickler.dump((function, tuple(args), dict(kwargs)))
        used = pickler.used
        new = {key: content for key, content in used.items() if key not in self._users}
        for key in used:
            self._users[key] = self._users.get(key, 0) + 1
        self._last = frozenset(used)
        return Packed(written.getvalue(), tuple(used), new)

    def release(self, keys: Iterable[str]) -> list[str]:
        """Tell that a call has ended.

        Args:
            keys: Its parcels.

        Returns:
            The parcels that no call needs any more. Those of the newest call stay, since the next
            one often needs the same.
        """
        for key in keys:
            self._users[key] -= 1
        idle = [key for key, count in self._users.items() if not count and key not in self._last]
        for key in idle:
            del self._users[key]
        if idle:
            self._seen = {
                address: (content, key)
                for address, (content, key) in self._seen.items()
                if key in self._users
            }
        return idle

    def _key_of(self, content: bytes) -> str:
        found = self._seen.get(id(content))
        if found is None:
            found = self._seen[id(content)] = (content, hashlib.sha256(content).hexdigest())
        return found[1]


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, key_of: Callable[[bytes], str]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._key_of = key_of
        self.used: dict[str, bytes] = {}

    def persistent_id(self, value: Any) -> str | None:  # noqa: ANN401 - any object
        if type(value) is not bytes or len(value) < LARGE:
            return None
        key = self._key_of(value)
        self.used.setdefault(key, value)
        return key


class _Unpickler(pickle.Unpickler):  # noqa: S301 - for our own bytes
    def __init__(self, file: io.BytesIO, parcels: Mapping[str, bytes]) -> None:
        super().__init__(file)
        self._parcels = parcels

    def persistent_load(self, key: Any) -> bytes:  # noqa: ANN401 - as `_Pickler` wrote it
        return self._parcels[key]


def run_packed(body: bytes, parcels: Mapping[str, bytes]) -> bytes:
    """Run a call and pack its outcome.

    Args:
        body: The call.
        parcels: Key -> content of what it needs.

    Returns:
        The outcome: what it returned, or what it raised.
    """
    try:
        function, args, kwargs = _Unpickler(io.BytesIO(body), parcels).load()
        return pickle.dumps((True, function(*args, **kwargs)))
    except Exception as error:  # noqa: BLE001 - it is raised again where the call came from
        return outcome_of(error)


def outcome_of(error: Exception) -> bytes:
    """Pack an error as the outcome of a call.

    Args:
        error: What was raised.

    Returns:
        The outcome, with an error of the same class, or of the nearest one that can be sent.
    """
    where = "".join(traceback.format_exception(error))
    return pickle.dumps((False, _portable(error), where))


def unpacked(outcome: bytes) -> Any:  # noqa: ANN401 - whatever the call returned
    """Unpack an outcome.

    Args:
        outcome: From `run_packed`.

    Returns:
        What the call returned.

    Raises:
        Exception: What the call raised; a note has the traceback from there.
    """
    worked, value, *where = pickle.loads(outcome)  # noqa: S301 - our own workers' bytes
    if worked:
        return value
    value.add_note(f"from a worker:\n{where[0]}")
    raise value


def _portable(error: Exception) -> Exception:
    """Give the error itself if it survives pickling, else one of its bases with its message."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - written just now
    except Exception:  # noqa: BLE001 - constructors of errors may do anything
        for base in type(error).__mro__[:-2]:
            try:
                near = base(str(error))
                pickle.loads(pickle.dumps(near))  # noqa: S301
            except Exception:  # noqa: BLE001, S112 - the next base is tried
                continue
            if isinstance(near, Exception):
                return near
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
