"""What is too long for a line loses the ends of its longest texts, and nothing else."""

import random

import pytest

from gateway.control.fitting import MARK, begin, fitted


def one(_: str) -> int:
    return 1


def hard(character: str) -> int:
    """Capitals are written as six bytes."""
    return 6 if character.isupper() else 1


def test_the_longest_are_cut_to_the_same() -> None:
    """What is shorter stays, and what is no text."""
    fields = {"a": "a" * 1000, "b": "b" * 900, "c": "c" * 500, "d": 7}
    cut = fitted(fields, 600, len, one)
    assert cut == {"a": "a" * 647 + MARK, "b": "b" * 647 + MARK, "c": "c" * 500, "d": 7}


def test_one_may_be_enough() -> None:
    cut = fitted({"a": "a" * 1000, "b": "b" * 900}, 10, len, one)
    assert cut == {"a": "a" * 987 + MARK, "b": "b" * 900}


def test_what_stands_around_a_text_counts() -> None:
    """Quotes, of which a cut text has as many as before."""
    cut = fitted({"a": "a" * 100}, 10, lambda text: len(text) + 2, one)
    assert cut == {"a": "a" * 87 + MARK}


def test_more_than_there_is_cannot_be_cut() -> None:
    assert fitted({"a": "aaaa"}, 10, len, one) == {"a": MARK}
    assert fitted({"d": 7}, 10, len, one) == {"d": 7}


def test_nothing_is_cut_inside_a_character() -> None:
    assert begin("aXb", 6, hard) == "a"
    assert begin("aXb", 7, hard) == "aX"
    assert begin("aXb", 8, hard) == "aXb"
    assert begin("aXb", 0, hard) == begin("aXb", -1, hard) == ""


@pytest.mark.parametrize("seed", range(20))
def test_it_fits_and_little_is_wasted(seed: int) -> None:
    """Whatever the lengths and the characters."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    fields = {
        str(number): "".join(chance.choices("abX", k=chance.choice([0, 3, 50, 900, 5000])))
        for number in range(chance.randrange(1, 9))
    } | {"long": "x" * 9000}

    def size(text: str) -> int:
        return 2 + sum(map(hard, text))

    before = sum(map(size, fields.values()))
    over = chance.randrange(1, before - 20 * len(fields))
    after = sum(map(size, fitted(fields, over, size, hard).values()))
    assert before - over - 7 * len(fields) <= after <= before - over
