"""Every share is dealt exactly once, whoever dies."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from hlt_train.transports.dealing import Deal, Source, deals, inherit

SIZES = {"workers": st.integers(1, 6), "steps": st.integers(0, 25), "warm": st.integers(0, 30)}


def drained(deal: Deal) -> list[tuple[int, int]]:
    found = []
    while (share := deal.pop()) is not None:
        found.append(share)
    return found


def all_shares(workers: int, steps: int) -> list[tuple[int, int]]:
    return sorted((step, owner) for step in range(steps) for owner in range(workers))


@given(**SIZES)
def test_a_run_is_dealt_once(workers: int, steps: int, warm: int) -> None:
    dealt = deals(workers, steps, warm)
    assert len(dealt) == workers
    assert sum(deal.left() for deal in dealt) == workers * steps
    first = [drained(deal) for deal in dealt]
    assert sorted(share for shares in first for share in shares) == all_shares(workers, steps)
    alone = [share for share in all_shares(workers, steps) if share[0] < warm]
    assert first[0][: len(alone)] == alone
    for k, shares in enumerate(first[1:], 1):
        assert shares == [(step, k) for step in range(warm, steps)]


@given(
    workers=st.integers(2, 6),
    steps=st.integers(1, 25),
    deaths=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.integers(0, 3)), max_size=5),
)
def test_any_deaths_deal_every_share_exactly_once(workers: int, steps: int, deaths: list[tuple[int, int, int]]) -> None:
    """Workers take turns; one dies after so many of them, and the last `unserved` results that it had sent are lost with it."""
    dealt, living = deals(workers, steps), list(range(workers))
    done: dict[int, list[tuple[int, int]]] = {k: [] for k in living}
    for who, turns, unserved in deaths:
        for turn in range(turns):
            k = living[turn % len(living)]
            if (share := dealt[k].pop()) is not None:
                done[k].append(share)
        if len(living) == 1:
            break
        k = living.pop(who % len(living))
        lost = done[k][len(done[k]) - unserved :] if unserved else []
        done[k] = done[k][: len(done[k]) - len(lost)]
        before = dealt[k].left()
        inherited = inherit(dealt[k], lost, living)
        counts = [Deal(sources).left() for sources in inherited.values()]
        assert sum(counts) == before + len(lost)
        assert max(counts) - min(counts) <= len(dealt[k].sources) + (len(lost) % len(living) > 0)
        for heir, sources in inherited.items():
            dealt[heir].extend(sources)
    for k in living:
        later = drained(dealt[k])
        assert later == sorted(later)
        done[k] += later
    assert sorted(share for shares in done.values() for share in shares) == all_shares(workers, steps)


@given(sources=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 20), st.integers(1, 4)), max_size=4), skipped=st.integers(0, 30))
def test_deal_as_a_document_and_skipped(sources: list[tuple[int, int, int, int]], skipped: int) -> None:
    sources = [(k, *rest[1:]) for k, rest in enumerate(sources)]  # shares do not come twice
    deal, same = Deal(sources), Deal(json.loads(json.dumps(Deal(sources).document())))
    assert deal.left() == sum(len(range(s.next, s.stop, s.stride)) for s in map(Source._make, sources))
    whole = drained(same)
    assert len(whole) == deal.left()
    assert deal.skip(skipped) == whole[:skipped]
    assert deal.peek() == (whole[skipped] if skipped < len(whole) else None)
    assert drained(deal) == whole[skipped:]
    assert deal.pop() is None
