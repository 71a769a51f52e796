"""What to do about an error of the server's, in words.

The server's texts are in its own language, so what an error is is told by its SQLSTATE (Postgres documentation,
appendix A "PostgreSQL Error Codes") and by the names of settings, which are never translated.
"""

from __future__ import annotations

from rowcast.telemetry.journal import VALUES, words

_ADVICE = {
    "42501": 'this role may not replicate; as an administrator, run: ALTER ROLE "{role}" REPLICATION',
    "53400": "every replication slot is taken; drop one that nobody uses (`rowcast check` names them), or raise "
    "max_replication_slots and restart Postgres",
    "53300": "every connection is taken; raise max_wal_senders or max_connections and restart Postgres",
    "28P01": "set the right password in [postgres] url",
    "28000": "set the right user in [postgres] url, or let this one in by pg_hba.conf",
    "3D000": "set an existing database in [postgres] url",
}

WAL_LEVEL = "run: ALTER SYSTEM SET wal_level = logical; and restart Postgres"
"""The cure for a server that does not write what logical decoding needs."""


def explain(error: BaseException, *, role: str = "…") -> str:
    """One line: what the server said and, where we know, what to do. `role` is who was refused."""
    code = getattr(error, "sqlstate", None) or ""
    text = words(error) if code[:2] in VALUES else " ".join(str(error).split()) or type(error).__name__
    if code == "55000" and "wal_level" in text:
        return f"{text}; {WAL_LEVEL}"
    advice = _ADVICE.get(code)
    return text if advice is None else f"{text}; {advice.format(role=role)}"
