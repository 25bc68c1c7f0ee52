from __future__ import annotations

from nemo_magic.actors.recent import Recent


def test_who_was_not_used_for_longest_makes_room() -> None:
    recent: Recent[str, int] = Recent(10)
    for number, name in enumerate("abc"):
        recent.keep(name, number, 3)
    assert recent.get("a") == 0  # used now
    recent.keep("d", 3, 4)
    assert [recent.get(name) for name in "abcd"] == [0, None, 2, 3]
    assert recent.size == 10


def test_what_is_too_large_takes_nobodys_place() -> None:
    recent: Recent[str, int] = Recent(10)
    recent.keep("a", 0, 9)
    recent.keep("b", 1, 11)
    assert (recent.get("a"), recent.get("b")) == (0, None)


def test_a_value_that_changed_is_kept_once_and_a_forgotten_one_not_at_all() -> None:
    recent: Recent[str, int] = Recent(10)
    recent.keep("a", 0, 6)
    recent.keep("a", 1, 7)
    assert (recent.get("a"), recent.size) == (1, 7)
    recent.forget("a")
    recent.forget("a")
    assert (recent.get("a"), recent.size) == (None, 0)
