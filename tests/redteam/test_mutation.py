"""Results of real runs against the scripted target, with the guard whole and with stages off.

Recorded with `vauban redteam all --profile quick`; the gate passes the whole guard and fails each
that lacks a stage.
"""

from __future__ import annotations

from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
