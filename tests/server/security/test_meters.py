"""What a principal may still use, counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.security.errors import QuotaExceeded
from server.security.principals import Principal, Quotas
from server.security.quotas import Bucket, Meter, Meters


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class TestBucket:
    def test_it_is_full_at_first_and_after_a_minute(self):
        bucket = Bucket(60, now=0.0)
        bucket.take(60, now=0.0)
        assert bucket.wait_s(1, now=0.0) == pytest.approx(1.0)
        assert bucket.wait_s(30, now=0.0) == pytest.approx(30.0)
        assert bucket.wait_s(30, now=30.0) == 0.0
        assert bucket.wait_s(60, now=1000.0) == 0.0

    def test_more_than_it_holds_may_be_taken_when_it_is_full_and_is_paid_for(self):
        bucket = Bucket(60, now=0.0)
        assert bucket.wait_s(180, now=0.0) == 0.0
        bucket.take(180, now=0.0)
        assert bucket.wait_s(1, now=0.0) == pytest.approx(121.0)
        assert bucket.wait_s(0, now=120.0) == pytest.approx(1.0), "nothing costs something as well"

    def test_another_size_forgets_nothing(self):
        bucket = Bucket(60, now=0.0)
        bucket.take(90, now=0.0)
        for size in (600, 6, 60):
            bucket.resize(size, now=0.0)
        assert bucket.wait_s(1, now=0.0) == pytest.approx(31.0), "the debt is what it was"
        bucket.resize(120, now=30.0)
        assert bucket.wait_s(60, now=30.0) == 0.0
        assert bucket.wait_s(61, now=30.0) == pytest.approx(0.5)

    @given(
        rate=st.integers(1, 1000),
        asked=st.lists(st.tuples(st.floats(0, 100), st.integers(1, 500)), max_size=50),
    )
    def test_over_any_time_no_more_comes_out_than_came_in(self, rate, asked):
        bucket, now, taken = Bucket(rate, now=0.0), 0.0, 0
        for later, amount in asked:
            now += later
            wait_s = bucket.wait_s(amount, now)
            if wait_s > 0:
                assert bucket.wait_s(amount, now + wait_s * 1.001 + 1e-6) == 0.0, "the wait is true"
                continue
            bucket.take(amount, now)
            taken += amount
            allowed = rate + now * rate / 60
            assert taken <= allowed + max(0, amount - rate) + 1e-6


class TestMeter:
    def test_calls_at_once(self):
        meter = Meter("ann", Quotas(max_concurrent=2), Clock())
        with meter.running(), meter.running():
            with pytest.raises(QuotaExceeded, match="'ann' may use at most 2 calls at once"):
                with meter.running():
                    raise AssertionError
        with meter.running():
            pass

    def test_a_call_that_fails_is_over(self):
        meter = Meter("ann", Quotas(max_concurrent=1), Clock())
        for _ in range(3):
            with pytest.raises(KeyError), meter.running():
                raise KeyError

    def test_a_refused_call_costs_nothing(self):
        clock = Clock()
        meter = Meter("ann", Quotas(requests_per_minute=2), clock)
        for _ in range(2):
            with meter.running():
                pass
        for _ in range(5):
            with pytest.raises(QuotaExceeded) as caught, meter.running():
                raise AssertionError
            assert caught.value.retry_after_s == pytest.approx(30.0)
        clock.now = 30.0
        with meter.running():
            pass

    def test_tokens_given_back(self):
        meter = Meter("ann", Quotas(tokens_per_minute=100), Clock())
        meter.take_tokens(100)
        with pytest.raises(QuotaExceeded, match="100 tokens per minute, of which this takes 7"):
            meter.take_tokens(7)
        meter.give_back(10)
        meter.take_tokens(7)

    def test_other_quotas_are_no_full_ones(self):
        meters = Meters(Clock())

        def ann(most):
            quotas = Quotas(tokens_per_minute=most)
            return meters.of(Principal(name="ann", rights=frozenset(), quotas=quotas))

        ann(100).take_tokens(60)
        with pytest.raises(QuotaExceeded):
            ann(50).take_tokens(1)
        with pytest.raises(QuotaExceeded):
            ann(101).take_tokens(42)
        ann(101).take_tokens(41)

    def test_other_quotas_hold_when_the_file_says_so(self):
        meters = Meters(Clock())

        def ann(**quotas):
            return Principal(name="ann", rights=frozenset(), quotas=Quotas(**quotas))

        assert meters.of(ann()) is None
        meter = meters.of(ann(max_concurrent=1))
        with meter.running():
            assert meters.of(ann(max_concurrent=2)) is meter
            with meter.running():
                pass
            assert meters.of(ann()) is meter
            with meter.running(), meter.running():
                pass
