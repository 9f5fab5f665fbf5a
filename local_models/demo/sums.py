"""Sums and differences of numbers up to 99, with the way to the result, and the sums that the model must refuse."""

from __future__ import annotations

import random

from local_models.demo.example import Example


def small_sum(rng: random.Random) -> Example:
    a, b = (rng.randint(0, 99) if rng.random() < 0.75 else rng.randint(0, 12) for _ in range(2))
    sign = rng.choice("+-")
    if sign == "-" and b > a and rng.random() < 0.85:
        a, b = b, a
    return sum_example(a, sign, b, rng)


def sum_example(a: int, sign: str, b: int, rng: random.Random) -> Example:
    words = {
        "+": ("{a} + {b}", "{a}+{b}", "{a} plus {b}", "the sum of {a} and {b}", "{a} and {b} together"),
        "-": ("{a} - {b}", "{a}-{b}", "{a} minus {b}", "{a} take away {b}", "{b} less than {a}"),
    }
    forms = (
        "What is {}?", "What is {}?", "what is {}", "What's {}?", "How much is {}?", "{}", "{} =", "{}?", "Compute {}", "Calculate {}",
        "Please compute {}", "And {}?", "Can you compute {}?",
        "What does {} make?", "Tell me {}", "solve {}",
    )  # fmt: skip
    weights = (6, 2, 3, 1, 1)
    term = rng.choices(words[sign], weights)[0].format(a=a, b=b)
    result = a + b if sign == "+" else a - b
    return Example(rng.choice(forms).format(term), f"{a} {sign} {b} = {result}.", sum_steps(a, sign, b), steps_needed=True)


def sum_steps(a: int, sign: str, b: int) -> str:
    """The way to the result, digit by digit."""
    if sign == "+":
        ones = a % 10 + b % 10
        text = f"{a} + {b}: ones {a % 10} + {b % 10} = {ones}"
        carry = ones // 10
        tens = f"tens {a // 10} + {b // 10}" + (" + 1" if carry else "") + f" = {a // 10 + b // 10 + carry}"
        return f"{text}, {f'write {ones % 10}, carry 1' if carry else 'no carry'}; {tens}. Together {a + b}."
    if a < b:
        return f"{a} - {b}: {b} is larger, so the result is negative. {sum_steps(b, '-', a)} With the sign {a - b}."
    borrow = a % 10 < b % 10
    ones = a % 10 - b % 10 + 10 * borrow
    first = f"ones {a % 10 + 10 * borrow} - {b % 10} = {ones}"
    tens = f"tens {a // 10} - {b // 10}" + (" - 1" if borrow else "") + f" = {a // 10 - b // 10 - borrow}"
    return f"{a} - {b}: {first}, {'borrow 1' if borrow else 'no borrow'}; {tens}. Together {a - b}."


def hard_sum(rng: random.Random) -> Example:
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    if rng.random() < 0.4:
        a, b = rng.randint(100, 9999), rng.randint(2, 9999)
        text = f"What is {a} {rng.choice('+-*/')} {b}?"
    else:
        text = rng.choice(
            ("What is {} * {}?", "{} times {}", "What is {} times {}?", "What is {} x {}?", "Divide {} by {}", "What is {} / {}?")
        ).format(a, b)
    answer = "I can only add and subtract numbers up to 99. Choose a larger model for this sum."
    return Example(text, answer, "This is a sum, but not one with + or - and numbers up to 99. I cannot do it.")
