"""The fast choice of Autobahn's cases through the gateway, and the comparison itself."""

from pathlib import Path

import pytest

from . import outcomes
from .install import install
from .outcomes import Difference, Outcome, judge
from .run import ENGINES, FAST, FAST_MESSAGES, choose, gateways, run

OK = Outcome("OK", "OK", 1000)
EARLY = Outcome("NON-STRICT", "OK", 1002)
FAILED = Outcome("FAILED", "OK", 1002)
LISTED = Difference(("client",), ("3.2",), ("NON-STRICT/OK/1002",), "stopped before the echo")


@pytest.mark.timeout(600)              # the first run fetches the suite, too
def test_no_case_is_spoiled_and_no_difference_is_without_a_reason(
    ring_refused: str, tmp_path: Path
) -> None:
    """Both ways: what passes directly passes through the gateway on every engine, in every form of
    its relays; what differs is listed."""
    install()
    chosen = gateways(ENGINES)
    verdicts = run(chosen, choose(FAST, FAST_MESSAGES), tmp_path, outcomes.load())
    report = "\n".join(line for verdict in verdicts for line in verdict.lines())
    print(report)
    expected = ENGINES[:1] if ring_refused else ENGINES
    assert [(verdict.way, verdict.through) for verdict in verdicts] == [
        (way, engine) for way in outcomes.WAYS for engine in expected
    ]
    assert all(verdict.ok for verdict in verdicts), report


def test_a_case_that_fails_only_through_the_gateway_is_spoiled() -> None:
    """Also where the list has the case: a reason never excuses a failure."""
    excuse = Difference(("client",), ("3.2",), (str(FAILED),), "no excuse")
    verdict = judge("client", {"3.2": OK}, {"3.2": FAILED}, [excuse])
    assert not verdict.ok
    assert list(verdict.spoiled) == ["3.2"]


def test_a_case_that_is_missing_is_spoiled() -> None:
    """A case that never ended through the gateway has failed there."""
    assert list(judge("client", {"1.1.1": OK}, {}, []).spoiled) == ["1.1.1"]


def test_a_difference_counts_as_listed_only_with_the_end_that_the_list_has() -> None:
    """The same case with another close code is a difference without a reason."""
    assert judge("client", {"3.2": OK}, {"3.2": EARLY}, [LISTED]).ok
    other = Outcome("NON-STRICT", "OK", 1011)
    verdict = judge("client", {"3.2": OK}, {"3.2": other}, [LISTED])
    assert list(verdict.unlisted) == ["3.2"]
    assert not verdict.ok
    assert list(judge("server", {"3.2": OK}, {"3.2": EARLY}, [LISTED]).unlisted) == ["3.2"]


def test_a_listed_case_that_no_longer_differs_is_reported() -> None:
    """It does not fail the run, but it is seen; one that differs `sometimes` is not."""
    verdict = judge("client", {"3.2": OK}, {"3.2": OK}, [LISTED])
    assert verdict.ok
    assert "ends as directly: 3.2" in "\n".join(verdict.lines())
    race = Difference(("client",), ("3.2",), LISTED.ends, "a race", sometimes=True)
    assert not judge("client", {"3.2": OK}, {"3.2": OK}, [race]).stale


def test_a_case_that_fails_directly_too_is_not_held_against_the_gateway() -> None:
    """It is reported as such."""
    verdict = judge("client", {"3.2": FAILED}, {"3.2": FAILED}, [])
    assert verdict.ok
    assert list(verdict.failed_directly) == ["3.2"]


def test_a_run_without_cases_is_not_in_order() -> None:
    """Nothing compared is nothing shown."""
    assert not judge("client", {}, {}, []).ok


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('[[difference]]\nways=["client"]\ncases=["3.2"]\nends=["x"]\nreason=" "', "without"),
        ('[[difference]]\nways=["up"]\ncases=["3.2"]\nends=["x"]\nreason="r"', "ways are"),
        (
            '[[difference]]\nways=["client"]\ncases=["3.2", "3.2"]\nends=["x"]\nreason="r"',
            "listed twice: client 3.2",
        ),
    ],
)
def test_a_list_with_a_mistake_is_refused(text: str, wrong: str, tmp_path: Path) -> None:
    """Every entry has ways, cases, ends and a reason; no case stands in two."""
    path = tmp_path / "differences.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=wrong):
        outcomes.load(path)
