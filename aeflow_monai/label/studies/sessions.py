"""Sessions: temporary images uploaded by a viewer, confined to one folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from monailabel.utils.sessions import Sessions

from aeflow_monai.label.names import is_session_id

__all__ = ["GuardedSessions"]


class GuardedSessions(Sessions):  # type: ignore[misc]
    """MONAI Label's sessions, restricted to ids that the server has issued.

    MONAI Label uses an id as a path, so that one with ".." reads or removes another folder; and a folder without a
    session record makes the server fail at the start.

    Args:
        store_path: folder of the sessions.
        expiry: seconds after its last use until a session is removed.
    """

    def get_session(self, session_id: str, update_ts: bool = True, fetch_cache: bool = True) -> Any:
        """Return a session; None if it does not exist or has expired."""
        if not is_session_id(session_id) or not self._has_record(session_id):
            return None
        return super().get_session(session_id, update_ts, fetch_cache)

    def remove_session(self, session_id: str) -> None:
        """Remove a session with its files."""
        if is_session_id(session_id):
            super().remove_session(session_id)

    def add_session(
        self, data_file: str, expiry: int = 0, uncompress: bool = False, session_id: str | None = None
    ) -> tuple[str, Any]:
        """Start a session with an upload, which is moved; see `monailabel.utils.sessions.Sessions.add_session`."""
        try:
            added: tuple[str, Any] = super().add_session(data_file, expiry, False, session_id)
        finally:
            left = Path(data_file)  # it was not moved
            if left.exists():
                shutil.rmtree(left if left.is_dir() else left.parent, ignore_errors=True)
        return added

    def remove_expired(self) -> int:
        """Remove expired sessions, and folders that are not sessions.

        Returns:
            The number of removed ones.
        """
        folder = Path(self.store_path)
        if not folder.is_dir():
            return 0
        foreign = [path for path in folder.iterdir() if path.is_dir() and not self._has_record(path.name)]
        for path in foreign:
            shutil.rmtree(path, ignore_errors=True)
        removed: int = super().remove_expired()
        return len(foreign) + removed

    def _has_record(self, session_id: str) -> bool:
        folder = Path(self.store_path, session_id)
        try:
            record = json.loads((folder / "meta.info").read_text(encoding="utf-8").partition("\n")[0])
            return is_session_id(session_id) and Path(record["image"]).exists()
        except (OSError, ValueError, TypeError, KeyError):
            return False
