"""Exactly once and in order, or one reset; and the rows of every client are the table's.

Real hubs against a model, over histories of a simulated Postgres, its log, two replicas and their clients: chosen by
hypothesis, which finds the shortest one that fails, and by seeds, of which many can be tried. ROWCAST_EXAMPLES,
ROWCAST_STEPS and ROWCAST_HISTORIES in the environment make it long.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from rowcast.core import behind, held, stream
from rowcast.testing.history import World
from rowcast.testing.simulated import Options

ACTIONS: list[tuple[int, Callable[[World], None]]] = [
    (10, World.begin),
    (40, World.write),
    (12, World.commit),
    (12, World.show),
    (50, World.feed),
    (25, World.load),
    (25, World.read),
    (20, World.deliver),
    (8, World.wait),
    (12, World.release),
    (14, World.read_back),
    (14, World.connect),
    (40, World.take),
    (9, World.cut),
    (3, World.keep),
    (2, World.back),
    (4, World.stall),
    (5, World.beat),
    (2, World.end),
    (2, World.forget),
    (1, World.lose_log),
    (1, World.restart_log),
    (2, World.trim_log),
    (1, World.settle),
]
"""What can happen, and how often it does where seeds decide."""


def begin(patch: pytest.MonkeyPatch, rng: random.Random, options: Options) -> World:
    """A new world, in which a few entries fill a page."""
    patch.setattr(held, "PAGE", 600)
    patch.setattr(stream, "PENDING_LIMIT", 1500)
    patch.setattr(behind, "MAX_TURNS", 2 if options.turns else 10**9)
    return World(rng, options)


class Histories(RuleBasedStateMachine):
    """Each action is a rule, and hypothesis chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()

    @initialize(
        rng=st.randoms(use_true_random=False),
        options=st.builds(
            Options,
            conflate=st.booleans(),
            interval=st.sampled_from([0, 300_000]),
            identity=st.sampled_from(["default", "full", "mixed"]),
            ring=st.sampled_from([None, 15]),
            readable=st.booleans(),
            turns=st.booleans(),
            packed=st.booleans(),
        ),
    )
    def start(self, rng: random.Random, options: Options) -> None:
        self.world = begin(self.patch, rng, options)

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.world.settle()
        finally:
            self.patch.undo()


def _rule(action: Callable[[World], None], most: int) -> Any:
    def step(self: Histories, times: int) -> None:
        for _ in range(times):
            action(self.world)

    step.__name__ = action.__name__
    return rule(times=st.integers(1, most))(step)


for _weight, _action in ACTIONS:
    setattr(Histories, _action.__name__, _rule(_action, 6 if _weight > 20 else 2 if _weight > 5 else 1))


def test_histories_that_hypothesis_chooses() -> None:
    examples = int(os.environ.get("ROWCAST_EXAMPLES", "0"))
    chosen = settings(
        max_examples=examples or 25,
        stateful_step_count=int(os.environ.get("ROWCAST_STEPS", "50")),
        deadline=None,
        derandomize=not examples,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Histories, settings=chosen)


def options_of(seed: int) -> Options:
    return Options(
        conflate=seed % 4 == 0,
        interval=(0, 0, 300_000)[seed % 3],
        identity=("default", "full", "mixed")[seed // 3 % 3],
        ring=None if seed % 5 else 15,
        readable=seed % 2 == 0,
        turns=seed % 7 == 0,
        packed=seed // 2 % 2 == 0,
    )


def run(seed: int, steps: int) -> int:
    rng = random.Random(seed)
    actions, weights = [action for _, action in ACTIONS], [weight for weight, _ in ACTIONS]
    with pytest.MonkeyPatch.context() as patch:
        world = begin(patch, rng, options_of(seed))
        for action in rng.choices(actions, weights, k=steps):
            action(world)
        world.settle()
    return world.checks


@pytest.mark.parametrize("block", range(4))
def test_histories_by_seed(block: int) -> None:
    checks = 0
    count = int(os.environ.get("ROWCAST_HISTORIES", "100"))
    for seed in range(block * count, block * count + count):
        try:
            checks += run(seed, 400)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    assert checks > 10 * count, "there must be something to check"
