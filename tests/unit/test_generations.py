"""A memory of two generations: bounded, and what is asked for stays."""

from __future__ import annotations

from rowcast.generations import Generations


def test_it_is_bounded() -> None:
    memory: Generations[int, str] = Generations(10)
    for number in range(100):
        memory.put(number, str(number))
        assert len(memory) <= 10
        assert [memory._young.get(n, memory._old.get(n)) for n in range(max(0, number - 4), number + 1)] == [
            str(n) for n in range(max(0, number - 4), number + 1)
        ]
    assert memory.get(0) is None


def test_what_is_asked_for_stays() -> None:
    memory: Generations[str, int] = Generations(4)
    memory.put("mine", 1)
    for number in range(50):
        memory.put(str(number), 0)
        assert memory.get("mine") == 1
        assert len(memory) <= 4


def test_the_newest_value_counts() -> None:
    memory: Generations[str, int] = Generations(4)
    memory.put("a", 1)
    memory.put("b", 1)
    memory.put("c", 1)  # a and b are the older ones now
    memory.put("a", 2)
    assert memory.get("a") == 2
    assert len(memory) == 3
    memory.clear()
    assert memory.get("a") is None
    assert len(memory) == 0
