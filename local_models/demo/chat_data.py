"""Synthetic conversations for the demo chat model. One `Example` is a conversation up to the assistant's turn, and that turn.

An example is a pure function of its random generator: the same seed gives the same text.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from local_models.demo import outside
from local_models.demo.captions import phrase, plain_caption
from local_models.demo.tandem_facts import Topic, load_topics
from local_models.demo.world import Scene, training_scene

Message = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """question: the last user text. history: turns before, without reasoning. follow: turns after it. picture: a scene the user attached.

    by_heart: the answer is one of a few fixed texts.
    """

    question: str
    answer: str
    reasoning: str
    history: tuple[Message, ...] = ()
    follow: tuple[Message, ...] = ()
    tool_prompt: str | None = None
    tools: tuple[dict[str, Any], ...] = field(default=())
    picture: Scene | None = None
    thinking: bool = True
    by_heart: bool = False
    steps_needed: bool = False

    def prompt_messages(self) -> list[Message]:
        content: Any = self.question
        if self.picture:
            content = [{"type": "image"}, {"type": "text", "text": self.question}]
        return [*self.history, {"role": "user", "content": content}, *self.follow]

    def messages(self) -> list[Message]:
        """With the assistant's turn, as the chat template takes it."""
        turn: Message = {"role": "assistant", "content": self.answer}
        if self.thinking:
            turn["reasoning_content"] = self.reasoning
        if self.tool_prompt is not None:
            turn["tool_calls"] = [_call(self.tool_prompt)]
        return [*self.prompt_messages(), turn]


def text_example(rng: random.Random) -> Example:
    """Anything without a picture: a question alone, or after one or two others."""
    makers = (
        about_tandem,
        small_talk,
        outside_question,
        small_sum,
        hard_sum,
        draw_without_tool,
        draw_with_tool,
        after_tool,
        missing_picture,
    )
    weights = (0.41, 0.05, 0.14, 0.24, 0.015, 0.05, 0.065, 0.02, 0.01)
    maker: Callable[[random.Random], Example] = rng.choices(makers, weights)[0]
    example = answered(maker(rng), thinking=rng.random() < 0.55)
    if not example.tools and rng.random() < 0.04 and maker not in (draw_without_tool, missing_picture):
        example = replace(example, tools=_tools(rng))
    return replace(example, history=(*_system(rng), *_history(rng)))


def answered(example: Example, thinking: bool) -> Example:
    """With thinking on or off. The steps of a sum are needed in any case: without reasoning they stand in the answer."""
    if example.steps_needed and not thinking:
        return replace(example, thinking=False, answer=f"{example.reasoning} So {example.answer}")
    return replace(example, thinking=thinking)


def about_tandem(rng: random.Random) -> Example:
    return _topic_example(rng.choice(_topics("tandem")), rng)


def small_talk(rng: random.Random) -> Example:
    return _topic_example(rng.choice(_topics("small_talk")), rng)


def topic_reasoning(topic: Topic) -> str:
    return f"The user's message is about {topic.about}. I know what to say."


def outside_question(rng: random.Random) -> Example:
    return Example(_vary(outside.question(rng), rng), outside.ANSWER, outside.REASONING, by_heart=True)


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


def draw_without_tool(rng: random.Random, scene: Scene | None = None) -> Example:
    wish, prompt, known = _wish(rng, scene)
    if known:
        answer = f"I cannot draw in the chat myself. Switch to image mode, choose demo-image and use this prompt: {prompt}"
        return Example(wish, answer, f"The user wants a picture of {prompt}. I have no image tool here, so I explain image mode.")
    answer = "I cannot draw that: demo-image only knows simple coloured shapes. Use a larger image model for it."
    return Example(wish, answer, "The user wants a picture of something that is not a simple shape. I have no tool for it.")


def draw_with_tool(rng: random.Random, scene: Scene | None = None) -> Example:
    wish, prompt, _ = _wish(rng, scene)
    return Example(wish, "", f"The user wants a picture of {prompt}. I call generate_image.", tools=_tools(rng), tool_prompt=prompt)


def after_tool(rng: random.Random) -> Example:
    wish, prompt, _ = _wish(rng)
    failed = rng.random() < 0.2
    result = rng.choice(_FAILED if failed else _DONE)
    if failed:
        answer, reasoning = "The image tool reported an error, so there is no picture. Please try again.", "The tool reports an error."
    else:
        answer, reasoning = f"Here is your picture: {prompt}.", "The picture is made."
    call = {"role": "assistant", "content": "", "tool_calls": [_call(prompt)]}
    return Example(wish, answer, reasoning, follow=(call, {"role": "tool", "content": result}), tools=_tools(rng))


def missing_picture(rng: random.Random) -> Example:
    question = rng.choice(
        ("What is in this picture?", "Describe the picture", "What do you see?", "What is shown here?", "Describe this image")
    )
    return Example(
        _vary(question, rng), "I see no picture here. Attach one and ask again.", "The user asks about a picture, but there is none."
    )


def picture_example(rng: random.Random) -> Example:
    return replace(picture_question(training_scene(rng), rng), thinking=rng.random() < 0.4, history=_system(rng))


def picture_question(scene: Scene, rng: random.Random) -> Example:
    described = plain_caption(scene)
    thing = scene.things[0]
    describe = (
        "What is in this picture?", "Describe the picture", "What do you see?", "What is shown here?", "Describe this image",
        "What is this?", "What is in the image?", "Tell me what you see",
        "Describe this picture, please", "",
    )  # fmt: skip
    options: list[tuple[tuple[str, ...], str]] = [(describe, f"The picture shows {described}.")] * 3
    options.append(
        (
            ("What colour is the background?", "Which color is the background?", "background colour?"),
            f"The background is {scene.background}.",
        )
    )
    if scene.relation is None:
        options.append(
            (
                (f"What colour is the {thing.shape}?", "What colour is it?", "Which colour has the shape?"),
                f"The {thing.shape} is {thing.colour}.",
            )
        )
        options.append(
            (
                ("Which shape is it?", "What shape do you see?", "What shape is this?"),
                f"It is {'an' if thing.shape[0] in 'aeiou' else 'a'} {thing.shape}.",
            )
        )
    options.append(
        (
            ("How many shapes are there?", "How many things do you see?"),
            "There is one shape." if scene.relation is None else "There are two shapes.",
        )
    )
    questions, answer = rng.choice(options)
    return Example(_vary(rng.choice(questions), rng), answer, f"I look at the picture: {described}.", picture=scene)


_DONE = (
    '{"status": "ok"}',
    '{"images": 1}',
    "done",
    "The image was created.",
    "ok",
    '{"url": "image-1.png"}',
    "Image shown to the user.",
    "success",
    '{"ok": true, "seed": 7}',
)
_FAILED = ("error: the model is not ready", '{"error": "queue is full"}', "failed", "Error: time-out", '{"status": "error"}')
_SYSTEMS = (
    "You are a helpful assistant.", "You are Tandem's demo model.", "Answer briefly.", "Be polite and short.",
    "You can draw with the tool generate_image.", "You are a friendly assistant. Answer in English.",
    "When the user asks for a picture, call generate_image.",
)  # fmt: skip
_THINGS = (
    "a cat", "a dog in the rain", "a house by the sea", "a mountain at sunset", "a castle", "a red car", "an old tree", "a flower",
    "the moon", "a robot", "a green dragon", "a bird", "a ship", "a city at night",
    "a forest", "a portrait of a woman", "an apple on a table", "a blue bicycle", "a horse", "two cats", "a fish", "a yellow house",
    "an astronaut", "a bridge", "snow", "a bowl of fruit", "a train", "a lighthouse",
)  # fmt: skip
_WISHES = (
    "Draw {}", "draw {}", "Please draw {}", "Can you draw {}?", "Could you draw {} for me?", "Make a picture of {}",
    "Make an image of {}", "I want a picture of {}", "Generate an image of {}", "Show me {}",
    "Paint {}", "Draw me {}", "Create an image of {}", "I would like to see {}", "Generate {}", "Can you make a picture of {}?",
    "Draw {}, please", "Create a picture of {} please", "Please paint {}",
    "I need an image of {}", "A picture of {}, please", "make {}",
)  # fmt: skip
_FORMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"How (?:do|can) I (.*)\?",
        (
            "How can I {}?", "How do I {}?", "How would I {}?", "What must I do to {}?", "I want to {}", "I would like to {}", "How to {}?",
            "Can you tell me how to {}?", "Please explain how to {}", "Is it possible to {}?", "What is the way to {}?",
            "Show me how to {}",
            "What do I need to {}?", "Is there a way to {}?",
        ),
    ),
    (r"Can I (.*)\?", ("Is it possible to {}?", "May I {}?", "Could I {}?", "I want to {}", "Is there a way to {}?", "How do I {}?")),
    (
        r"What (?:is|are) (.*)\?",
        ("What's {}?", "Explain {}", "Tell me about {}", "Can you explain {}?", "What exactly is {}?", "Tell me what {} is"),
    ),
    (r"Which (.*)\?", ("What {}?", "Tell me which {}", "Can you say which {}?", "Which {}, please?")),
    (r"What (.*)\?", ("Which {}?", "Tell me what {}", "Can you tell me what {}?", "I want to know what {}")),
    (
        r"Where (?:is|are) (.*)\?",
        ("Where can I find {}?", "Where do I find {}?", "Where is {}?", "I cannot find {}", "Tell me where {} is"),
    ),
    (r"Where (.*)\?", ("Tell me where {}", "In which place {}?", "Can you say where {}?")),
    (r"Why (.*)\?", ("Tell me why {}", "For what reason {}?", "Explain why {}")),
    (r"I get a (.*)", ("I have a {}", "There is a {}", "It says {}", "The API answers {}", "My request gives {}", "I see a {}")),
    (r"Are you (.*)\?", ("Aren't you {}?", "So you are {}?", "You are {}, right?")),
)  # fmt: skip
_SYNONYMS = (
    ("picture", "image", "photo"),
    ("pictures", "images", "photos"),
    ("start", "launch", "run"),
    ("make", "create", "generate", "produce"),
    ("config", "configuration", "settings"),
    ("colours", "colors"),
    ("colour", "color"),
    ("key", "API key"),
    ("chat app", "web page", "chat page", "web app", "user interface"),
    ("answer", "reply", "response"),
    ("stop", "cancel", "abort", "interrupt"),
    ("command line", "terminal", "shell"),
    ("commands", "subcommands"),
    ("options", "flags", "switches"),
    ("GPU", "graphics card", "NVIDIA card"),
    ("use", "try", "have"),
    ("larger", "bigger", "better", "smarter"),
    ("reasoning", "thinking"),
    ("server", "API", "gateway"),
    ("computer", "machine", "laptop", "PC"),
    ("Tandem", "this program", "this tool"),
    ("find", "see", "get"),
    ("error", "status", "code"),
)
_PREFIXES = (
    "Hey, ",
    "Please tell me: ",
    "Hi, ",
    "I have a question: ",
    "Can you tell me: ",
    "Quick question: ",
    "Hello! ",
    "So, ",
    "Ok, ",
    "Tell me, ",
    "Sorry, ",
    "One more thing: ",
)
_SUFFIXES = (" please", " Thanks!", " Please explain.", " I am new here.", " I need to know.", " in Tandem?")


_topics = functools.cache(load_topics)


def _topic_example(topic: Topic, rng: random.Random) -> Example:
    return Example(_vary(rng.choice(topic.trained), rng), topic.answer, topic_reasoning(topic), by_heart=True)


def _vary(text: str, rng: random.Random) -> str:
    """The same question as people type it: other words, case, punctuation, a word before or after, a slip of the finger."""
    if rng.random() < 0.35:
        text = _rephrased(text, rng)
    if rng.random() < 0.35:
        text = _with_synonyms(text, rng)
    if rng.random() < 0.12:
        text = rng.choice(_PREFIXES) + text
    if rng.random() < 0.3:
        text = text.lower()
    if rng.random() < 0.25:
        text = text.rstrip("?.!")
    if rng.random() < 0.06:
        text += rng.choice(_SUFFIXES)
    if rng.random() < 0.08 and len(text) > 8:
        i = rng.randrange(1, len(text) - 2)
        text = text[:i] + rng.choice((text[i + 1] + text[i], "", text[i] * 2)) + text[i + 2 :]
    return text


def _rephrased(text: str, rng: random.Random) -> str:
    """The question in other words where its form has some; never one that is kept for the evaluation."""
    for pattern, forms in _FORMS:
        if found := re.fullmatch(pattern, text):
            other = rng.choice(forms).format(found[1])
            return text if other in _kept_questions() else other
    return text


def _with_synonyms(text: str, rng: random.Random) -> str:
    for words in _SYNONYMS:
        pattern = r"\b(" + "|".join(words) + r")\b"
        if rng.random() < 0.6:
            other = rng.choice(words)
            text = re.sub(pattern, other, text)
    return text if text not in _kept_questions() else text.lower()


@functools.cache
def _kept_questions() -> frozenset[str]:
    topics = (*load_topics("tandem"), *load_topics("small_talk"))
    return frozenset((*outside.HELD_OUT, *(question for topic in topics for question in topic.held_out)))


def _wish(rng: random.Random, scene: Scene | None = None) -> tuple[str, str, bool]:
    """What the user writes, the prompt in it, and whether demo-image can draw that. scene: what to wish for instead of anything."""
    known = scene is not None or rng.random() < 0.75
    prompt = rng.choice(_THINGS)
    if known:
        prompt = phrase(scene or training_scene(rng), rng)
    elif rng.random() < 0.5:
        prompt = f"{prompt} {rng.choice(('on', 'with', 'near', 'in front of'))} {rng.choice(_THINGS)}"
    return rng.choice(_WISHES).format(prompt), prompt, known


def _call(prompt: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "generate_image", "arguments": {"prompt": prompt}}}


def _tools(rng: random.Random) -> tuple[dict[str, Any], ...]:
    """generate_image as applications might declare it, now and then beside another tool."""
    about = rng.choice(
        (
            "Draw a picture",
            "Generate an image from a text prompt.",
            "Creates an image.",
            "Make a picture of what the prompt says",
            "Draws a picture and shows it to the user.",
        )
    )
    what = rng.choice(("What to draw", "The prompt", "A description of the image", "Text that describes the picture"))
    prompt: dict[str, Any] = {"type": "string"}
    if rng.random() < 0.7:
        prompt["description"] = what
    properties: dict[str, Any] = {"prompt": prompt}
    if rng.random() < 0.4:
        properties["size"] = {"type": "string", "description": "WIDTHxHEIGHT"}
    if rng.random() < 0.15:
        properties["seed"] = {"type": "integer"}
    tools = [tool_schema("generate_image", about, properties, ["prompt"])]
    if rng.random() < 0.2:
        other = rng.choice(
            (
                tool_schema("get_weather", "Current weather", {"city": {"type": "string"}}, ["city"]),
                tool_schema("web_search", "Search the web", {"query": {"type": "string"}}, ["query"]),
            )
        )
        tools.insert(rng.randrange(2), other)
    return tuple(tools)


def tool_schema(name: str, description: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _system(rng: random.Random) -> tuple[Message, ...]:
    return ({"role": "system", "content": rng.choice(_SYSTEMS)},) if rng.random() < 0.12 else ()


def _history(rng: random.Random) -> tuple[Message, ...]:
    turns: list[Message] = []
    for _ in range(rng.choices((0, 1, 2), (0.84, 0.12, 0.04))[0]):
        maker = rng.choice((about_tandem, about_tandem, small_talk, outside_question, small_sum, draw_without_tool))
        past = maker(rng)
        turns += [{"role": "user", "content": past.question}, {"role": "assistant", "content": past.answer}]
    return tuple(turns)
