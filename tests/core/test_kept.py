"""What is kept for records: the right result, for whichever of them is asked."""

from __future__ import annotations

from helix_sim.core import kept
from helix_sim.core.kept import kept_for_records


class Record:
    """Something with an identity."""

    def __init__(self, value: int) -> None:
        self.value = value


def test_what_is_kept_for_a_record_is_made_once_and_never_another_s(monkeypatch):
    monkeypatch.setattr(kept, "MOST_KEPT", 3)
    calls = []
    doubled = kept_for_records(lambda record: calls.append(record) or 2 * record.value)
    one, other = Record(1), Record(1)
    assert [doubled(one), doubled(one), doubled(other)] == [2, 2, 2]
    assert calls == [one, other]
    # short-lived records take each other's place in memory; a result must not outlive its record's identity
    assert [doubled(Record(value)) for value in range(50)] == [2 * value for value in range(50)]
