"""Which questions are trained on: the paper's rules, by hand and by the sizes that it reports."""

from __future__ import annotations

import numpy as np
import pytest

from kdlab.data.partition import draw, first_split, grouped_split, random_split, template

TEN = [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]  # RandomState(0).permutation(10), which numpy promises never to change


def test_seventy_percent_of_a_fixed_permutation_sorted() -> None:
    train, test = random_split(10)
    assert train.tolist() == sorted(TEN[:7])
    assert test.tolist() == sorted(TEN[7:])


@pytest.mark.parametrize(
    ("size", "train"),
    [(508, 356), (395, 276), (600, 420), (1000, 700), (369, 258), (750, 525), (500, 350), (2290, 1603)],
)
def test_the_sizes_of_the_paper(size: int, train: int) -> None:
    """papers.md 2.2: SingleEq, AddSub (276.5 becomes 276), MultiArith, SVAMP, Date, Shuffled, Coin, StrategyQA."""
    assert [len(part) for part in random_split(size)] == [train, size - train]


def test_whole_groups_go_to_one_side_in_the_order_of_their_first_question() -> None:
    """Ten groups a to j: those in places 3, 0 and 5 are the test, wherever their questions stand."""
    groups = list("abcdefghij") + list("dfaab")
    train, test = grouped_split(groups)
    assert test.tolist() == [0, 3, 5, 10, 11, 12, 13]
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(15))


def test_the_stories_of_date_understanding_give_the_published_template_split() -> None:
    """41 stories of nine questions each; the official file has these stories in test, 261 and 108 questions."""
    train, test = grouped_split([number // 9 for number in range(369)])
    assert (len(train), len(test)) == (261, 108)
    assert sorted({place // 9 for place in test.tolist()}) == [0, 3, 6, 9, 12, 19, 21, 23, 24, 26, 32, 39]


def test_a_template_lacks_numbers_and_names() -> None:
    same = template("Tom had 12 books. If he sold 3, how many has Tom?")
    assert same == template("Ann had 5 books. If he sold 40, how many has Ann?")
    assert same != template("Tom had 12 pens. If he sold 3, how many has Tom?")
    assert template("Paul's shop had 7 bins.") == template("Zoe's shop had 19 bins.")


def test_a_story_keeps_its_numbers_and_names_and_loses_its_question() -> None:
    until = "What is the date"
    story = template("Jane was born in 2000. What is the date today?", until)
    assert story == template("Jane was born in 2000. What is the date tomorrow?", until)
    assert story != template("Jane was born in 2001. What is the date today?", until)


def test_the_first_questions() -> None:
    train, test = first_split(5, 3)
    assert (train.tolist(), test.tolist()) == ([0, 1, 2], [3, 4])


def test_draws_are_of_the_positions_given_and_sorted() -> None:
    places = np.arange(10) * 100
    assert draw(places, 3).tolist() == [200, 400, 800]
    assert draw(places, 3, seed=1).tolist() != draw(places, 3).tolist()
    assert draw(places, 99).tolist() == places.tolist()
