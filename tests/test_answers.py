"""Both parsers, the comparison with gold answers, and scores, against values worked out by hand."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from kdlab.data.answers import Form, Judgement, bootstrap, can_be_right, constant, gold, judge, parse, summary
from kdlab.errors import DataError

NUMBER = Form(kind="number")
FLOAT = Form(kind="number", compare="number")
CHOICE = Form(kind="choice", choices="ABCDE")
YES_NO = Form(kind="yes_no")
TEXT = Form(kind="text")
TOWN = Form(kind="text", cleanse=True)


def read(text: str, form: Form, template: str = "ft_cot_token", parser: str = "strict") -> str | None:
    return parse(text, template=template, form=form, parser=parser).prediction


# the official parser


@pytest.mark.parametrize(
    ("template", "prediction", "candidates", "correct_format"),
    [
        ("zs", "2", ("2", "3", "5", "4"), True),  # no prefix: the first
        ("ft_token", "2", ("2", "3", "5", "4"), True),
        ("ft_cot_token", "5", ("5", "4"), True),  # behind the first prefix
        ("fs_cot", "4", ("4",), True),
        ("ft_cot_natural", "4", ("2", "3", "5", "4"), False),  # no prefix found: the last of all
    ],
)
def test_which_candidate(template: str, prediction: str, candidates: tuple[str, ...], correct_format: bool) -> None:
    parsed = parse("2 and 3 make --> 5. The answer is 4.", template=template, form=NUMBER)
    assert (parsed.prediction, parsed.candidates, parsed.correct_format) == (prediction, candidates, correct_format)


def test_the_prefix_that_is_looked_for_is_the_one_that_is_trained() -> None:
    trained, official = "3 eggs.\n\nTherefore the answer is 7 of 8", "3 eggs.\n\nTherefore, the answer is 7 of 8"
    for text, natural_comma, found in (
        (trained, False, True),
        (official, False, False),
        (trained, True, False),
        (official, True, True),
    ):
        parsed = parse(text, template="ft_cot_natural", form=NUMBER, natural_comma=natural_comma)
        assert (parsed.prediction, parsed.correct_format) == (("7", True) if found else ("8", False))


@pytest.mark.parametrize(
    ("text", "form", "expected"),
    [
        ("$1,234.50 of -7", NUMBER, ("1234.50", "-7")),
        ("1,2,3 and 10-4", NUMBER, ("123", "10", "-4")),  # quirks: commas vanish, a minus sticks to its number
        ("Both (A) and B", CHOICE, ("B", "A", "B")),  # quirk: letters of words
        ("F", CHOICE, ()),
        ("Yes, no. 'no'\nyes! Yesterday", YES_NO, ("yes", "no", "no")),  # quirk: no "yes!"
        ('"a b."', TEXT, ("ab",)),
        ("", TEXT, ("",)),
        ("", NUMBER, ()),
    ],
)
def test_official_candidates(text: str, form: Form, expected: tuple[str, ...]) -> None:
    parsed = parse(text, template="zs", form=form)
    assert parsed.candidates == expected
    assert parsed.prediction == (expected[0] if expected else None)


def test_choices_are_letters_and_no_pattern() -> None:
    assert parse("a^]-z", template="zs", form=Form(kind="choice", choices="^]-")).candidates == ("^", "]", "-")


def test_official_comparison() -> None:
    assert not judge("18.0", "18", template="zs", form=NUMBER).correct
    assert judge("18.0", "18", template="zs", form=FLOAT).correct
    assert judge("1,000", "1000", template="zs", form=NUMBER).correct
    assert judge("1000", "1,000", template="zs", form=NUMBER).correct
    assert judge("0.3333335", "0.333333", template="zs", form=FLOAT).correct
    assert not judge("0.333335", "0.333333", template="zs", form=FLOAT).correct
    assert judge("yes", "Yes", template="zs", form=YES_NO).correct
    assert not judge("yes", "Yes", template="zs", form=Form(kind="yes_no", lower=False)).correct
    assert not judge("nk", "NK", template="zs", form=TEXT).correct


def test_numbers_without_end_are_never_equal() -> None:
    huge = "9" * 400
    assert not judge(huge, "5", template="zs", form=FLOAT).correct
    assert not judge(huge, "5", template="zs", form=NUMBER, parser="strict").correct


def test_an_answer_that_is_somewhere() -> None:
    judged = judge("4, or 5", "5", template="zs", form=NUMBER)
    assert (judged.prediction, judged.correct, judged.contains_answer) == ("4", False, True)
    assert not judge("4, or 6", "5", template="zs", form=NUMBER).contains_answer


@pytest.mark.parametrize(("finish_reason", "complete"), [("stop", True), ("length", False), (None, False)])
def test_complete(finish_reason: str | None, complete: bool) -> None:
    assert judge("5", "5", template="zs", form=NUMBER, finish_reason=finish_reason).complete is complete


# gold answers


def test_gold() -> None:
    assert gold("70,000", NUMBER) == "70000"
    assert gold("Yes", YES_NO) == "yes" and gold("Yes", Form(kind="yes_no", lower=False)) == "Yes"
    assert gold(" B", CHOICE) == " B"
    assert gold("$70,000.0", NUMBER, parser="strict") == "70000"
    assert gold("(b)", CHOICE, parser="strict") == "B"
    assert gold('"Nk"', TEXT, parser="strict") == "nk"
    assert gold(" 3/4 ", NUMBER, parser="strict") == "3/4"  # no number of this parser: left as it is


@pytest.mark.parametrize("answer", ["#### 72", "", "nan", "inf", "twelve"])
def test_a_gold_answer_that_is_no_number(answer: str) -> None:
    with pytest.raises(DataError, match="is no number") as caught:
        gold(answer, FLOAT)
    assert "task.after" in str(caught.value)
    assert gold(answer, NUMBER) == answer  # strings are compared, as in the official gsm8k


@pytest.mark.parametrize(
    ("answer", "form", "official", "strict"),
    [
        ("1,050", NUMBER, True, True),
        ("#### 72", NUMBER, False, True),  # the strict parser reads gold answers as it reads others
        ("72 or 73", NUMBER, False, False),
        ("-3.50", FLOAT, True, True),
        ("B", CHOICE, True, True),
        ("F", CHOICE, False, False),
        ("(B)", CHOICE, False, True),
        ("No", YES_NO, True, True),
        ("maybe", YES_NO, False, False),
        ("nk", TEXT, True, True),
        ("new york", TEXT, False, True),  # the official parser takes out blanks
        ("new york", TOWN, True, True),
        ("...", TOWN, False, False),
    ],
)
def test_whether_an_answer_can_be_given(answer: str, form: Form, official: bool, strict: bool) -> None:
    assert can_be_right(answer, form) is official
    assert can_be_right(answer, form, parser="strict") is strict


def test_cleansed_text_answers() -> None:
    for answer in ("New York", "St. Louis", '"O\'Hare"', "nk"):
        for text in (f" {answer}.", f' "{answer}"'):
            judged = judge(text, answer, template="ft_token", form=TOWN)
            assert judged.correct and judged.contains_answer, (answer, text)
    assert (gold(" St. 'Louis'\n", TOWN), gold("St. Louis", TEXT)) == ("StLouis", "St. Louis")
    assert not judge("new york", "New York", template="ft_token", form=TOWN).correct
    assert not judge("", "...", template="ft_token", form=TOWN).correct


def test_choices_need_letters() -> None:
    for choices in (None, ""):
        with pytest.raises(DataError, match=r"letters are not given") as caught:
            Form(kind="choice", choices=choices)
        assert "task.choices=ABCDE" in str(caught.value)


# the strict parser


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (" 5", "5"),
        (" 5.0", "5"),
        (": 5.", "5"),
        (" 5.50 cups", "5.5"),
        (" .5", "0.5"),
        (" 0007", "7"),
        (" 1,000", "1000"),
        (" 1,000,000.25", "1000000.25"),
        (" $5", "5"),
        (" $ 5", "5"),
        (" -$5.00", "-5"),
        (" $-5", "-5"),
        (" −5", "-5"),
        (" +5", "5"),
        (" -0.0", "0"),
        (" 5%", "5"),
        (" €1,050!", "1050"),
        (" **5**", "5"),
        (" $5$", "5"),
        (" \\boxed{5}.", "5"),
        (" about 5 apples", "5"),
        (" 2 + 3 = 5", "5"),
        (" 35+28+14=77 sandwiches.", "77"),
        (" 5. There were 7 before, 2 of 9 = 18", "5"),  # the next sentence does not count
        ("\n\n5\n6", "5"),
        ("\n\n2 * 3 = 6", "6"),
        ("", None),
        (" five", None),
        (" 3/4", None),
        (" 1 1/2", None),
        (" 5 - 0.5", None),
        (" 5 x 3", None),
        (" 1,2,3", None),
        (" 8, 9", None),
        (" 5 or 6", None),
        (" 1 000", None),
        (" 12/07/2014", None),
        (" 2.50.75", None),
        (" 1e3", None),
        (" 2x", None),
        (" B12", None),
        ("\n\nThere were 375 students.", None),  # a new sentence, not what was announced
        ("\n\n2x + 3y = 60", None),
    ],
)
def test_strict_numbers(after: str, expected: str | None) -> None:
    assert read(f"She had 9 and lost 4.\n9 - 4 is that. -->{after}", NUMBER) == expected
    assert read(f"She had 9. The answer is{after}", NUMBER, "fs_cot") == expected


def test_strict_wants_an_announcement() -> None:
    sentence = "She had 9 apples and lost 4, so she has 5."
    for template in ("zs", "ft_token", "ft_cot_token", "fs_cot", "ft_cot_natural"):
        assert read(sentence, NUMBER, template) is None
        assert read(sentence, NUMBER, template, "official") is not None
        assert read(f"{sentence} The answer is 5.", NUMBER, template) == "5"
        assert read(f"{sentence} the Answer (in apples) is: 5.", NUMBER, template) == "5"
    assert parse(sentence, template="ft_cot_token", form=NUMBER, parser="strict").candidates == ()


@pytest.mark.parametrize("template", ["zs", "zs_cot", "ft_token"])
def test_strict_takes_the_completion_for_the_answer_where_nothing_announces_it(template: str) -> None:
    assert read(" 5 apples.\nI hope this helps!", NUMBER, template) == "5"
    assert read(": \n\n5", NUMBER, template) == "5"
    assert read(": Yes", YES_NO, template) == "yes"
    assert read(" (C) 36", CHOICE, template) == "C"
    assert read("A dog barks.", CHOICE, template) is None
    assert read(" 20.\n\nThe answer (words) is twenty.", NUMBER, template) == "20"


def test_strict_zero_shot_cot_goes_on_after_the_answer_is() -> None:
    assert read(" most likely C, the basement.", CHOICE, "zs_cot") == "C"
    assert read(" most likely C, the basement.", CHOICE, "zs") is None


def test_strict_takes_the_last_announcement_that_holds_an_answer() -> None:
    text = "Elon --> n, Musk --> k --> nk"
    assert read(text, TEXT) == "nk"
    assert read("8 --> 5 -->", NUMBER) == "5"
    assert read("The answer is 6. No: the answer is 9.", NUMBER, "fs_cot") == "9"
    assert read("The answer is 6 --> 7", NUMBER) == "7"
    parsed = parse("The answer is 6 --> 7", template="ft_cot_token", form=NUMBER, parser="strict")
    assert parsed.candidates == ("7", "6")


def test_strict_ends_where_the_model_asks_itself() -> None:
    text = " 3 and 4. The answer is 7.\nQ: And 5 more?\nA: The answer is 12."
    assert read(text, NUMBER, "fs_cot") == "7"


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (" B", "B"),
        ("(B)", "B"),
        (" (b)", "B"),
        (" B) 15", "B"),
        (" [C].", "C"),
        (" **D**", "D"),
        (" option E", "E"),
        (" B, bloom", "B"),
        (" D. C joined later", "D"),
        (" (D) not (A)", "D"),
        (" A", "A"),
        (" A, goat", "A"),
        (" A 36", "A"),
        (" A because it burns", "A"),
        ("\nE", "E"),
        (" A dog (B)", "B"),
        (" A dog", None),
        (" the Best of All", None),
        (" AB", None),
        (" B-52", None),
        (" A.D.", None),
        (" F", None),
        (" b", None),
        (" A or B", None),
        (" B, C, or D.", None),
        (" (A)(B)(C)", None),
        (" (A) and (E).", None),
        ("\nThe Best is B", None),
    ],
)
def test_strict_choices(after: str, expected: str | None) -> None:
    assert read(f"All Cats Bite. -->{after}", CHOICE) == expected


def test_strict_choices_of_any_letters() -> None:
    assert read("--> (K)", Form(kind="choice", choices="JK")) == "K"
    assert read("--> (A)", Form(kind="choice", choices="ab")) == "a"
    assert read("--> A", Form(kind="choice", choices="ab")) is None


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (" yes", "yes"),
        ("No", "no"),
        (": YES!", "yes"),
        (' "no".', "no"),
        (" **yes**", "yes"),
        ("\n\n(No)", "no"),
        (" no, wait: yes", "no"),
        (" it is yes", None),
        (" nobody", None),
        (" yesterday", None),
        (" no-one", None),
        (" yes and no", None),
        (" yes/no", None),
        ("", None),
    ],
)
def test_strict_yes_and_no(after: str, expected: str | None) -> None:
    assert read(f"No heads. -->{after}", YES_NO) == expected


def test_strict_text() -> None:
    assert read("n, k --> 'NK'. ", TEXT) == "nk"
    assert read("-->\n\n  New   York.\nIt is big.", TEXT) == "new york"
    assert read("--> “”", TEXT) is None
    assert judge("--> nk", '"Nk"', template="ft_cot_token", form=TEXT, parser="strict").correct
    assert not judge("--> n k", "nk", template="ft_cot_token", form=TEXT, parser="strict").correct


def test_strict_numbers_are_compared_as_numbers() -> None:
    for text, answer in (("5.0", "5"), ("1,000", "1000"), ("$5", "5.00"), ("5%", "5"), ("0.3333333", "0.33333333333")):
        for form in (NUMBER, FLOAT):
            judged = judge(f"x --> {text}", answer, template="ft_cot_token", form=form, parser="strict")
            assert judged.correct and judged.contains_answer and judged.correct_format
    assert not judge("x --> 5.01", "5", template="ft_cot_token", form=NUMBER, parser="strict").correct
    assert not judge("x --> 5", "3/4", template="ft_cot_token", form=NUMBER, parser="strict").correct


def test_strict_reports_the_format_of_the_template() -> None:
    judged = judge("The answer is 5.", "5", template="ft_cot_token", form=NUMBER, parser="strict")
    assert judged.correct and not judged.correct_format


@pytest.mark.parametrize("form", [NUMBER, FLOAT, CHOICE, YES_NO, TEXT])
@pytest.mark.parametrize("template", ["zs", "ft_cot_token"])
def test_long_and_odd_texts_are_read_at_once(form: Form, template: str) -> None:
    texts = ["", "\n", "-->", "\0", "answer is", "1" * 50_000, "-->" * 20_000, "answer is A, " * 2000]
    texts += ["answer is" + " " * 50_000, "(" * 50_000, "-->" + "-" * 50_000 + "!", "--> " + "A or " * 10_000]
    started = time.perf_counter()
    for text in texts:
        for parser in ("official", "strict"):
            judge(text, "5", template=template, form=form, parser=parser)
    assert time.perf_counter() - started < 2


# scores


def judgement(correct: bool, contains: bool, well_formed: bool, complete: bool) -> Judgement:
    return Judgement("5", correct, contains, well_formed, complete)


def test_summary() -> None:
    judged = [
        judgement(True, True, True, True),
        judgement(False, True, True, False),
        judgement(False, True, False, False),
        judgement(False, False, True, True),
    ]
    expected = {"accuracy": 0.25, "contains_answer": 0.75, "correct_format": 0.75, "complete": 0.5}
    assert summary(judged) == expected
    with pytest.raises(DataError, match="no answers to score"):
        summary([])


def test_bootstrap_against_the_binomial_distribution() -> None:
    # of 4 questions half of which are right: P(0), ..., P(4) = 1, 4, 6, 4, 1 sixteenths; 2.5 % and 97.5 % are 0 and 1,
    # 10 % and 90 % are 1/4 and 3/4
    correct = [True, False, True, False]
    assert bootstrap(correct, seed=0) == (0.0, 1.0)
    assert bootstrap(correct, seed=0, level=0.8) == (0.25, 0.75)


def test_bootstrap_against_the_normal_distribution() -> None:
    correct = [number % 5 < 2 for number in range(10_000)]
    half = 1.959964 * math.sqrt(0.4 * 0.6 / 10_000)
    low, high = bootstrap(correct, seed=1, draws=100_000)
    assert low == pytest.approx(0.4 - half, abs=3e-4) and high == pytest.approx(0.4 + half, abs=3e-4)


def test_bootstrap_agrees_with_drawing_questions() -> None:
    correct = np.arange(150) % 3 == 0
    rng = np.random.default_rng(5)
    means = correct[rng.integers(0, 150, size=(40_000, 150))].mean(axis=1)
    low, high = bootstrap(list(correct), seed=2, draws=40_000)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.0067)  # one question


def test_bootstrap_edges() -> None:
    """Wilson at p = 1: n / (n + z^2) to 1, at p = 0 the mirror of it; the seed has no part in it."""
    z = 1.959964
    assert bootstrap([True] * 7, seed=0) == pytest.approx((7 / (7 + z * z), 1.0), abs=1e-6)
    assert bootstrap([False] * 7, seed=0) == pytest.approx((0.0, z * z / (7 + z * z)), abs=1e-6)
    assert bootstrap([True], seed=0, level=0.8) == pytest.approx((1 / (1 + 1.281552**2), 1.0), abs=1e-6)
    assert bootstrap([True] * 7, seed=1) == bootstrap([True] * 7, seed=0)
    with pytest.raises(DataError, match="no answers to score"):
        bootstrap([], seed=0)


def test_bootstrap_is_repeatable_and_cheap() -> None:
    correct = [number % 3 == 0 for number in range(1319)]
    started = time.perf_counter()
    first = bootstrap(correct, seed=7)
    assert time.perf_counter() - started < 0.3
    assert first == bootstrap(correct, seed=7) != bootstrap(correct, seed=8)
    assert all(type(end) is float for end in first)


def test_constant() -> None:
    assert constant(["yes", "no", "yes", "yes"]) == ("yes", 0.75)
    assert constant([None, None, "5"]) == (None, 2 / 3)
    assert constant(["b", "a", "a", "b"]) == ("b", 0.5)
    assert constant(iter(["A"])) == ("A", 1.0)
    assert constant([]) == (None, 0.0)
