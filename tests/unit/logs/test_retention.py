"""How far back the log must reach."""

from __future__ import annotations

from rowcast.logs.retention import Retention


def test_nothing_is_known_at_first() -> None:
    retention = Retention(100.0, 1000)
    assert retention.target() == 0
    retention.sample(0.0, 500)
    assert retention.target() == 0


def test_what_is_older_than_the_retention_need_not_be_kept() -> None:
    retention = Retention(100.0, 1_000_000)
    for number in range(5):
        retention.sample(number * 40.0, 1000 + number * 10)
    assert retention.target() == 1010, "that of 40 s; at 160 s it is older than 100 s"


def test_the_target_never_goes_back() -> None:
    retention = Retention(100.0, 1_000_000)
    targets = []
    for number in range(50):
        retention.sample(number * 7.0, number * 10)
        targets.append(retention.target())
    assert targets == sorted(targets)
    assert targets[-1] == 340, "that of 238 s, which is the last one more than 100 s before 343 s"


def test_bytes_bound_it_too() -> None:
    retention = Retention(100.0, 1000)
    retention.sample(0.0, 5000)
    assert retention.target() == 4000


def test_lag() -> None:
    retention = Retention(100.0, 1_000_000)
    assert retention.lag(0.0, 0) == 0.0
    for number in range(5):
        retention.sample(number * 10.0, 1000 + number)
    assert retention.lag(42.0, 1004) == 0.0
    assert retention.lag(42.0, 2000) == 0.0
    assert retention.lag(42.0, 1002) == 12.0
    assert retention.lag(42.0, 5) == 42.0


def test_an_idle_database_is_not_behind() -> None:
    retention = Retention(100.0, 1_000_000)
    for number in range(5):
        retention.sample(number * 10.0, 1000)
    assert retention.lag(40.0, 1000) == 0.0


def test_another_log_begins_without_samples() -> None:
    retention = Retention(10.0, 1_000_000)
    retention.sample(0.0, 1000)
    retention.sample(20.0, 2000)
    assert retention.target() == 1000
    retention.clear()
    assert retention.target() == 0
    retention.sample(30.0, 50)
    assert retention.target() == 0
