"""What answers cost: a dated table of prices, estimates before a run, and the ledger that stops one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from kdlab import config
from kdlab.errors import BudgetError, ConfigError
from kdlab.rationales.completion import OPENAI_HOST, Completion, Request, Section, resolve_url

TABLE = Path(__file__).with_name("prices.json")
_MILLION = 1_000_000
CHARACTERS_PER_TOKEN = 4  # of English, about
TEMPLATE_TOKENS = 12  # about what a template adds to a question: "Q: ", "A: Let's think step by step."


@dataclass(frozen=True, kw_only=True)
class Price:
    """US dollars per million tokens."""

    input: float
    output: float
    source: str  # where the price was read
    date: str | None = None  # when; None: the user's own


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A rough count before anything is asked; of answers only the most that they can be is known."""

    requests: int
    prompt_tokens: int
    completion_tokens_at_most: int
    usd_at_most: float | None  # None: no price is known
    price: Price | None = None


@cache
def table() -> dict[str, Price]:
    """The prices that kdlab ships, by the endpoint's name of the model."""
    models = json.loads(TABLE.read_text(encoding="utf-8"))["models"]
    return {
        name: Price(input=row["input"], output=row["output"], source=row["source"], date=row["date"])
        for name, row in models.items()
    }


def price(model: str, *, base_url: str | None, override: config.Price, section: Section = "rationales") -> Price | None:
    """What a model costs. The table holds for OpenAI's own address only; None where neither it nor the user knows.

    override: the user's price in this section of the configuration, either of whose numbers may be absent.
    Raises ConfigError if one number is given, and nothing is known of the other.
    """
    listed = table().get(model) if urlsplit(resolve_url(base_url)).hostname == OPENAI_HOST else None
    given: dict[str, float | None] = {"input": override.input, "output": override.output}
    if all(value is None for value in given.values()):
        return listed
    if listed is not None:
        given = {name: getattr(listed, name) if value is None else value for name, value in given.items()}
    problems = [
        f"{section}.price.{name}: the other one is given, and the table has no price for {model!r} at this address"
        for name, value in given.items()
        if value is None
    ]
    problems += [f"{section}.price.{name}: {value} is below 0" for name, value in given.items() if value and value < 0]
    if problems:
        raise ConfigError(problems)
    assert given["input"] is not None and given["output"] is not None
    return Price(input=given["input"], output=given["output"], source=f"{section}.price")


def cost(prompt_tokens: int, completion_tokens: int, price: Price) -> float:
    """US dollars; exact until the last rounding, so that a sum of many small answers meets a budget to the cent."""
    exact = prompt_tokens * Decimal(str(price.input)) + completion_tokens * Decimal(str(price.output))
    return float(exact / _MILLION)


def estimate(
    questions: int, characters: int, samples: int, max_tokens: int, steps: int, price: Price | None
) -> Estimate:
    """Count requests and tokens by the rule of thumb of four characters a token.

    characters: of all questions together, and of what is set before each of them (exemplars).
    steps: of a rationale; the prompt of each holds what the steps before it answered, here taken at its longest.
    """
    requests = questions * samples * steps
    texts = -(-characters // CHARACTERS_PER_TOKEN) + questions * TEMPLATE_TOKENS
    carried = questions * max_tokens * (steps * (steps - 1) // 2)
    prompt_tokens = samples * (steps * texts + carried)
    completion_tokens = requests * max_tokens
    return Estimate(
        requests=requests,
        prompt_tokens=prompt_tokens,
        completion_tokens_at_most=completion_tokens,
        usd_at_most=None if price is None else cost(prompt_tokens, completion_tokens, price),
        price=price,
    )


def shown(estimate: Estimate, section: Section = "rationales") -> str:
    """One line for `kdlab plan`."""
    text = (
        f"{estimate.requests:,} requests, ~{estimate.prompt_tokens:,} tokens in, "
        f"at most {estimate.completion_tokens_at_most:,} out, "
    )
    if estimate.usd_at_most is None or estimate.price is None:
        return text + f"price unknown ({section}.price.input and .output, US dollars per million tokens)"
    known = estimate.price
    origin = f"prices of {known.date}" if known.date else known.source
    return text + f"at most {dollars(estimate.usd_at_most)} (${known.input:g} in, ${known.output:g} out, {origin})"


def dollars(usd: float) -> str:
    """Cents where they say enough, else as many digits as it takes: "$0.00036"."""
    if usd == 0 or usd >= 0.095:
        return f"${usd:,.2f}"
    return f"${float(f'{usd:.2g}'):.12f}".rstrip("0")


def rounded_up(usd: float) -> str:
    """Dollars rounded up: to cents, or to three digits below a dollar."""
    exact = Decimal(str(usd))
    places = 2 if usd >= 1 else 2 - exact.adjusted()
    return f"{exact.quantize(Decimal(1).scaleb(-places), ROUND_UP):f}"


def tokens_at_most(text: str) -> int:
    """A safe guess of a text's tokens: one for two bytes, where English has four and Chinese about three."""
    return -(-len(text.encode("utf-8", "replace")) // 2) + 8


def limits(budget: config.Budget, tokens: int, usd: float | None) -> tuple[list[str], list[str]]:
    """The limits that are set, and what must be raised to pay for so much: both as words of the command line."""
    given, enough = [], []
    if budget.usd is not None and usd is not None:
        given.append(f"budget.usd={budget.usd:g}")
        if usd > budget.usd:
            enough.append(f"budget.usd={rounded_up(usd)}")
    if budget.tokens is not None:
        given.append(f"budget.tokens={budget.tokens}")
        if tokens > budget.tokens:
            enough.append(f"budget.tokens={tokens}")
    return given, enough


def excess(budget: config.Budget, tokens: int, usd: float | None) -> str:
    """What an estimate says after its numbers if they are above the budget, else nothing."""
    over = []
    if budget.usd is not None and usd is not None and usd > budget.usd:
        over.append(f"budget.usd={budget.usd:g}")
    if budget.tokens is not None and tokens > budget.tokens:
        over.append(f"budget.tokens={budget.tokens}")
    return f"; more than {' and '.join(over)}, it will stop there" if over else ""


def unpriced(what: str, *, settings: str) -> BudgetError:
    """The error of a budget in dollars where no price is known. settings: that give it."""
    return BudgetError(
        f"budget.usd is set, but nothing is known of what {what} costs: nothing was sent.",
        where="budget.usd",
        fix=f"Set {settings} (US dollars per million tokens), or limit budget.tokens instead.",
    )


class Ledger:
    """What a stage has spent, and whether the budget, which each stage has for itself, allows one more request.

    Spent is what answers to its requests were billed, those that the journal already held included; where the
    endpoint doesn't say, a guess on the safe side. What is in flight counts as much as it can cost. A try that was
    cut off after it was sent may have been billed: it counts in full, though a later process knows nothing of it.

    Raises BudgetError at once if dollars are limited and no price is known.
    """

    def __init__(self, budget: config.Budget, price: Price | None, *, section: Section = "rationales") -> None:
        if budget.usd is not None and price is None:
            raise unpriced("this model", settings=f"{section}.price.input and {section}.price.output")
        self.budget, self.price = budget, price
        self.prompt_tokens = self.completion_tokens = 0
        self._held_prompt = self._held_completion = 0
        self._spent: set[str] = set()

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def usd(self) -> float | None:
        return None if self.price is None else cost(self.prompt_tokens, self.completion_tokens, self.price)

    def spend(self, key: str, request: Request, completion: Completion) -> None:
        """Count an answer that was just paid for. key: of its request."""
        self._spent.add(key)
        asked, answered = completion.prompt_tokens, completion.completion_tokens
        self.prompt_tokens += tokens_at_most(request.prompt) if asked is None else asked
        self.completion_tokens += tokens_at_most(completion.text) if answered is None else answered

    def recall(self, key: str, request: Request, completion: Completion) -> None:
        """Count an answer that was paid for at another time, unless it is counted already."""
        if key not in self._spent:
            self.spend(key, request, completion)

    def hold(self, request: Request, max_tokens: int) -> bool:
        """Set the most that a request can cost aside, unless the budget forbids it."""
        prompt_tokens = self.prompt_tokens + self._held_prompt + tokens_at_most(request.prompt)
        completion_tokens = self.completion_tokens + self._held_completion + max_tokens
        if self.budget.tokens is not None and prompt_tokens + completion_tokens > self.budget.tokens:
            return False
        if self.budget.usd is not None:
            assert self.price is not None
            if cost(prompt_tokens, completion_tokens, self.price) > self.budget.usd:
                return False
        self._held_prompt += tokens_at_most(request.prompt)
        self._held_completion += max_tokens
        return True

    def release(self, request: Request, max_tokens: int) -> None:
        """Give back what `hold` set aside."""
        self._held_prompt -= tokens_at_most(request.prompt)
        self._held_completion -= max_tokens

    def lose(self, request: Request, max_tokens: int) -> None:
        """Count a try whose answer never arrived whole and may have been billed."""
        self.prompt_tokens += tokens_at_most(request.prompt)
        self.completion_tokens += max_tokens

    def exceeded(self, left: Sequence[Request], max_tokens: int) -> BudgetError:
        """The error that says what was spent, what is left to do, and what to raise."""
        prompt_tokens = self.prompt_tokens + sum(tokens_at_most(request.prompt) for request in left)
        completion_tokens = self.completion_tokens + len(left) * max_tokens
        spent = [f"{self.tokens:,} tokens"] if self.usd is None else [dollars(self.usd), f"{self.tokens:,} tokens"]
        needed = None if self.price is None else cost(prompt_tokens, completion_tokens, self.price)
        given, enough = limits(self.budget, prompt_tokens + completion_tokens, needed)
        return BudgetError(
            f"The next request could exceed the budget of this stage: {' and '.join(spent)} spent, "
            f"{len(left):,} {'request' if len(left) == 1 else 'requests'} of this step left to do.",
            where=" ".join(given),
            fix=f"Raise it and run the same command again: {' '.join(enough)} is enough for this step. "
            "What was answered is in the journal and isn't paid for again.",
        )
