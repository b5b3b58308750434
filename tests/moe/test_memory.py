"""Caches of experts: counts by hand, the look-ahead bound against every possible choice, bytes and seconds."""

from functools import cache
from itertools import combinations

import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.moe.config import PRESETS, MoeConfig
from pipelines.moe.memory import (
    POLICIES,
    Machine,
    curves,
    expert_bytes,
    replay,
    room_bytes,
    shared_bytes,
    simulate,
    speed_of,
)

FOUR = MoeConfig(experts=4, active=1, layers=1)


def one_a_time(*experts):
    """A trace of one layer, one expert a token: (1, N, 1)."""
    return np.array(experts)[None, :, None]


def hits(trace, slots, policy, count=4):
    return replay(trace, count, [slots], policy)[0].sum(axis=0).tolist()


def test_least_recently_used_by_hand():
    #                          0  1  2  0  1  3  0  1
    trace = one_a_time(0, 1, 2, 0, 1, 3, 0, 1)
    assert hits(trace, 2, "lru") == [0, 0, 0, 0, 0, 0, 0, 0]  # the one that comes next has always just gone
    assert hits(trace, 3, "lru") == [0, 0, 0, 1, 1, 0, 1, 1]
    assert hits(trace, 4, "lru") == [0, 0, 0, 1, 1, 0, 1, 1]


def test_least_frequently_used_by_hand():
    trace = one_a_time(0, 0, 1, 2, 0, 3, 2, 1, 0)
    # 0 stays throughout; 2 takes 1's place, 3 takes 2's, then 2 takes 3's (asked twice now), 1 takes 2's (older, equal)
    assert hits(trace, 2, "lfu") == [0, 1, 0, 0, 1, 0, 0, 0, 1]
    assert hits(trace, 2, "lru") == [0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_look_ahead_by_hand():
    trace = one_a_time(0, 1, 2, 0, 1, 3, 0, 1)
    # 2 must come in and takes the place of 1, since 0 is needed sooner; and so on
    assert hits(trace, 2, "ahead") == [0, 0, 0, 1, 0, 0, 1, 0]
    assert hits(trace, 3, "ahead") == [0, 0, 0, 1, 1, 0, 1, 1]


def best(trace, slots, count):
    """The most hits that any choice of what goes can reach: all of them are tried."""
    wanted = [frozenset(row) for row in trace[0].tolist()]

    @cache
    def most(now, held):
        if now == len(wanted):
            return 0
        found = len(held & wanted[now])
        there = held | wanted[now]
        if len(there) <= slots:
            return found + most(now + 1, there)
        spare = sorted(there - wanted[now])
        keeps = combinations(spare, slots - len(wanted[now]))
        return found + max(most(now + 1, wanted[now] | frozenset(kept)) for kept in keeps)

    return most(0, frozenset())


@pytest.mark.parametrize(("active", "slots"), [(1, 2), (1, 3), (2, 3), (2, 4), (3, 4)])
def test_look_ahead_is_as_good_as_any_choice_can_be(active, slots):
    generator = np.random.default_rng(active * 10 + slots)
    beaten = 0
    for _ in range(30):
        trace = generator.random((1, 12, 5)).argsort(-1)[..., :active]
        bound = best(trace, slots, 5)
        assert sum(hits(trace, slots, "ahead", 5)) == bound
        for policy in ("lru", "lfu", "random"):
            assert sum(hits(trace, slots, policy, 5)) <= bound
        beaten += sum(hits(trace, slots, "lru", 5)) < bound
    assert beaten > 10  # the bound is no other name of what everybody reaches


def naive(trace, count, slots, policy):
    """The readable way: a list for each layer, one expert after the other."""
    found = np.zeros(trace.shape[:2], np.int64)
    for layer, rows in enumerate(trace.tolist()):
        held, used, often = [], {}, dict.fromkeys(range(count), 0)
        for now, row in enumerate(rows):
            found[layer, now] = sum(e in held for e in row)
            for e in row:
                used[e], often[e] = now, often[e] + 1
            for e in row:
                if e in held:
                    continue
                if len(held) == slots:
                    spare = [h for h in held if h not in row]
                    age = {h: (0 if policy == "lru" else often[h], used[h]) for h in spare}
                    held.remove(min(spare, key=age.__getitem__))
                held.append(e)
    return found


@pytest.mark.parametrize("policy", ["lru", "lfu"])
def test_all_sizes_and_layers_at_once_are_as_one_by_one(policy):
    # two experts of a token are asked for at once, so which of two equally old ones goes is open: compare with one
    trace = np.random.default_rng(2).random((3, 60, 6)).argsort(-1)[..., :1]
    together = replay(trace, 6, [1, 2, 3, 4, 5, 6], policy)
    for i, slots in enumerate(range(1, 7)):
        assert np.array_equal(together[i], naive(trace, 6, slots, policy))


def test_room_for_all_misses_each_expert_once():
    trace = np.random.default_rng(3).random((2, 50, 8)).argsort(-1)[..., :2]
    for policy in POLICIES:
        done = simulate(trace, PRESETS["stories"], 8, policy)
        assert done.misses.sum() == 16 and done.hits.sum() == 200 - 16 and done.hit_rate == pytest.approx(184 / 200)
        assert done.hits.shape == done.misses.shape == (50,) and done.misses[0] == 4
        assert (done.policy, done.slots) == (policy, 8)


def test_room_for_one_token_alone_keeps_what_the_next_has_in_common():
    trace = np.array([[[0, 1], [1, 2], [2, 0], [3, 1], [3, 1]]])
    for policy in POLICIES:
        assert hits(trace, 2, policy) == [0, 1, 1, 0, 2]


def test_larger_caches_are_no_worse_and_the_control_is_seeded():
    trace = np.random.default_rng(4).random((2, 80, 8)).argsort(-1)[..., :2]
    sizes, found = curves(trace, 8)
    assert sizes == [2, 3, 4, 5, 6, 7, 8] and set(found) == set(POLICIES)
    for policy in ("lru", "ahead"):  # stack algorithms; the others may have an odd step
        assert (np.diff(found[policy]) >= 0).all()
    assert found["ahead"].min() >= 0 and all((found["ahead"] >= found[p] - 1e-12).all() for p in POLICIES)
    again = replay(trace, 8, [4], "random", seed=0)
    assert np.array_equal(again, replay(trace, 8, [4], "random", seed=0))
    assert not np.array_equal(again, replay(trace, 8, [4], "random", seed=1))
    # over a trace without any habit all rules are as good as chance, but for the one that sees ahead
    assert abs(found["lru"][2] - found["random"][2]) < 0.08 and found["ahead"][2] > found["lru"][2] + 0.1


def test_what_cannot_be_simulated_is_said():
    trace = np.array([[[0, 1]]])
    for slots in (0, 1, 9):
        with pytest.raises(UserError, match="between 2 and 8"):
            simulate(trace, PRESETS["stories"], slots, "lru")
    with pytest.raises(UserError, match="policy"):
        simulate(trace, PRESETS["stories"], 4, "best")
    for wrong in ({"memory": 0.0}, {"storage": -1.0}, {"memory": float("nan")}, {"storage": float("inf")}):
        with pytest.raises(UserError, match="bandwidth"):
            Machine(**wrong)
    with pytest.raises(UserError, match="bits"):
        Machine(bits=0)


def test_a_trace_without_tokens():
    done = simulate(np.zeros((6, 0, 2), np.int64), PRESETS["stories"], 4, "ahead")
    assert done.hits.shape == (0,) and done.hit_rate == 0.0


def test_bytes_of_mixtral():
    mixtral = PRESETS["mixtral-8x7b"]
    assert expert_bytes(mixtral, 16) == 3 * 4096 * 14_336 * 2  # 352 MB
    assert room_bytes(mixtral, 8, 16) == pytest.approx(46.70e9 * 2, rel=1e-3)
    # 12.88 B parameters work for a token; the embedding's 131 M are not read
    assert shared_bytes(mixtral, 16) + 64 * expert_bytes(mixtral, 16) == pytest.approx(
        (12.88e9 - 0.131e9) * 2, rel=1e-3
    )
    granite = PRESETS["granite-3.1-1b-a400m"]  # tied: the embedding is the output matrix and is read
    assert shared_bytes(granite, 8) + 24 * 8 * expert_bytes(granite, 8) == granite.parameters[1]


def test_seconds_by_hand():
    mixtral, machine = PRESETS["mixtral-8x7b"], Machine(memory=100, storage=10, bits=8)
    read = shared_bytes(mixtral, 8) + 64 * expert_bytes(mixtral, 8)
    assert speed_of(mixtral, 1.0, machine) == pytest.approx(100e9 / read)
    half = read / 100e9 + 32 * expert_bytes(mixtral, 8) / 10e9
    assert speed_of(mixtral, 0.5, machine) == pytest.approx(1 / half)
    assert simulate(np.array([[[0]], [[1]]]), FOUR, 2, "lru", machine).tokens_per_second == pytest.approx(
        speed_of(FOUR, 0.0, machine)
    )
