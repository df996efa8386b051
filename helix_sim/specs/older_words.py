"""Words of earlier files, read for one release: a timing was a clock, a machine was hardware."""

from __future__ import annotations

from typing import Any

TODAY = {"clock": "timing", "hardware": "machine"}
MACHINE_FACTS = ("sms", "l2_MB", "tray_gpus")
"""What a calibration once said of its machine, whose own file says it now."""


def in_todays_words(content: dict[str, Any]) -> dict[str, Any]:
    """A file's content with the kind, a sweep's keys and a calibration as they are written today.

    >>> in_todays_words({"kind": "sweep", "hardware": "h100-hgx", "clock": "ideal"})
    {'kind': 'sweep', 'machine': 'h100-hgx', 'timing': 'ideal'}
    """
    kind = content.get("kind")
    today = TODAY.get(kind, kind) if isinstance(kind, str) else kind
    if today == "sweep":
        content = {key if TODAY.get(key, key) in content else TODAY.get(key, key): content[key] for key in content}
    if today == "timing" and isinstance(calibration := content.get("calibration"), dict):
        kept = {key: value for key, value in calibration.items() if key not in MACHINE_FACTS}
        content = {**content, "calibration": kept}
    return content if kind == today else {**content, "kind": today}


def older_words(content: dict[str, Any]) -> list[str]:
    """A sentence on each word of a file that has another name today."""
    kind = content.get("kind")
    found = [("kind: ", kind)] if isinstance(kind, str) and kind in TODAY else []
    found += [("", key) for key in TODAY if kind == "sweep" and key in content and TODAY[key] not in content]
    return [f"{where}{word} is now {where}{TODAY[word]}, and goes with the next release" for where, word in found]
