"""What the demo chat model learns: a mix of generated conversations.

An example is a pure function of its random generator: the same seed gives the same text.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from local_models.demo import outside
from local_models.demo.captions import article, phrase, plain_caption
from local_models.demo.example import Example, Message, answered, tool_call
from local_models.demo.rephrase import vary
from local_models.demo.sums import hard_sum, small_sum
from local_models.demo.tandem_facts import Topic, load_topics
from local_models.demo.world import OPPOSITE, SHAPES, Scene, ordered, training_scene


def known_example(rng: random.Random) -> Example:
    """A question that has an answer known by heart, or is known to have none: alone, or after one or two others."""
    maker: Callable[[random.Random], Example] = rng.choices((about_tandem, small_talk, outside_question), (0.82, 0.07, 0.11))[0]
    example = answered(maker(rng), thinking=rng.random() < 0.5)
    if rng.random() < 0.02:
        example = replace(example, tools=_tools(rng))
    return replace(example, history=(*_system(rng), *_history(rng)))


def skill_example(rng: random.Random) -> Example:
    """Something that no text known by heart can answer: repeating, sums, drawing what was asked for, answers in a wanted form."""
    makers = (repeat, small_sum, hard_sum, draw_without_tool, draw_with_tool, after_tool, in_form, missing_picture)
    weights = (0.06, 0.52, 0.02, 0.1, 0.16, 0.04, 0.08, 0.02)
    maker: Callable[[random.Random], Example] = rng.choices(makers, weights)[0]
    return replace(answered(maker(rng), thinking=rng.random() < 0.5), history=_system(rng))


def repeat(rng: random.Random) -> Example:
    """Word for word: every token of the answer stands in the question, which soon teaches to look there."""
    kind = rng.random()
    if kind < 0.35:
        text = " ".join(str(rng.randint(0, 99)) for _ in range(rng.randint(3, 10)))
    elif kind < 0.65:
        text = phrase(training_scene(rng), rng)
    else:
        text = " ".join(rng.choice(_vocabulary()) for _ in range(rng.randint(3, 9)))
    return Example(rng.choice(_REPEAT_WISHES).format(text), text, f"The user wants me to repeat: {text}")


def about_tandem(rng: random.Random) -> Example:
    return _topic_example(rng.choice(_topics("tandem")), rng)


def small_talk(rng: random.Random) -> Example:
    return _topic_example(rng.choice(_topics("small_talk")), rng)


def topic_reasoning(topic: Topic) -> str:
    return f"The user's message is about {topic.about}. I know what to say."


def outside_question(rng: random.Random) -> Example:
    return Example(vary(outside.question(rng), rng), outside.ANSWER, outside.REASONING)


def in_form(rng: random.Random) -> Example:
    """A question whose answer is wanted as JSON or as one word."""
    topics = _topics("tandem")
    if rng.random() < 0.6:
        return in_json(rng, topics)
    topic = rng.choice(topics)
    if topic.word:
        return _in_one_word(_topic_example(topic, rng), rng, topic.word)
    return _in_one_word(replace(small_sum(rng), steps_needed=False), rng)


def in_json(rng: random.Random, topics: tuple[Topic, ...], kept: bool = False) -> Example:
    """A sum or a topic, wanted as JSON. kept: with a question that is never trained."""
    if rng.random() < 0.4:
        return _as_json(small_sum(rng), rng)
    topic = rng.choice(topics)
    example = _topic_example(topic, rng)
    return _as_json(replace(example, question=rng.choice(topic.held_out)) if kept else example, rng)


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
    call = {"role": "assistant", "content": "", "tool_calls": [tool_call(prompt)]}
    return Example(wish, answer, reasoning, follow=(call, {"role": "tool", "content": result}), tools=_tools(rng))


def missing_picture(rng: random.Random) -> Example:
    question = rng.choice(
        ("What is in this picture?", "Describe the picture", "What do you see?", "What is shown here?", "Describe this image")
    )
    return Example(
        vary(question, rng), "I see no picture here. Attach one and ask again.", "The user asks about a picture, but there is none."
    )


def picture_example(rng: random.Random) -> Example:
    scene = ordered(training_scene(rng, pairs=0.45))
    return replace(picture_question(scene, rng), thinking=rng.random() < 0.35, history=_system(rng))


def picture_question(scene: Scene, rng: random.Random) -> Example:
    """Describing it is asked for most often; the rest are single questions, some of them wanted as JSON or as one word."""
    description = plain_caption(scene)
    roll = rng.random()
    if roll < 0.45:
        question, answer, word = rng.choice(_DESCRIBE), f"The picture shows {description}.", ""
    else:
        question, answer, word = rng.choice(_picture_questions(scene, rng))
    example = Example(vary(question, rng), answer, f"I look at the picture: {description}.", picture=scene)
    if roll < 0.08:
        return _with_form(example, rng.choice(_JSON_WISHES), json.dumps(picture_facts(scene)))
    if word and rng.random() < 0.45:
        return _in_one_word(example, rng, word)
    return example


def picture_facts(scene: Scene) -> dict[str, Any]:
    """The scene as the model gives it when JSON is wanted."""
    facts: dict[str, Any] = {
        "background": scene.background,
        "shapes": [{"colour": thing.colour, "shape": thing.shape} for thing in scene.things],
    }
    return facts | {"relation": scene.relation} if scene.relation else facts


def _picture_questions(scene: Scene, rng: random.Random) -> list[tuple[str, str, str]]:
    """(question, answer, answer in one word) about parts of the picture."""
    first = rng.choice(scene.things)
    count = {1: "one", 2: "two"}[len(scene.things)]
    other = rng.choice([shape for shape in SHAPES if all(shape != thing.shape for thing in scene.things)])
    found = [
        (rng.choice(_BACKGROUND_QUESTIONS), f"The background is {scene.background}.", scene.background),
        (rng.choice(_COUNT_QUESTIONS), f"There {'is one shape' if count == 'one' else 'are two shapes'}.", count),
        (f"Is there {article(first.shape)}?", f"Yes, there is {article(f'{first.colour} {first.shape}')}.", "yes"),
        (f"Is there {article(other)}?", f"No, I see {plain_caption(scene)}.", "no"),
    ]
    if len({thing.shape for thing in scene.things}) == len(scene.things):
        found.append((f"What colour is the {first.shape}?", f"The {first.shape} is {first.colour}.", first.colour))
    found.append((f"Which shape is {first.colour}?", f"The {first.shape} is {first.colour}.", first.shape))
    if scene.relation:
        one, two = scene.things
        where = OPPOSITE.get(scene.relation, "around")
        found.append(
            (
                f"Where is the {one.colour} {one.shape}?",
                f"The {one.colour} {one.shape} is {scene.relation} the {two.colour} {two.shape}.",
                "",
            )
        )
        found.append(
            (f"Where is the {two.colour} {two.shape}?", f"The {two.colour} {two.shape} is {where} the {one.colour} {one.shape}.", "")
        )
    else:
        found.append((rng.choice(_COLOUR_QUESTIONS), f"The {first.shape} is {first.colour}.", first.colour))
        found.append((rng.choice(_SHAPE_QUESTIONS), f"It is {article(first.shape)}.", first.shape))
    return found


def _as_json(example: Example, rng: random.Random) -> Example:
    """A sum gives its result as a number, with its steps where nothing else shows them; anything else its answer as a string."""
    wish = rng.choice(_JSON_WISHES)
    if example.steps_needed:
        result = int(example.answer.rstrip(".").rsplit(" ", 1)[1])
        return _with_form(example, wish, json.dumps({"result": result}), json.dumps({"steps": example.reasoning, "result": result}))
    return _with_form(example, wish, json.dumps({"answer": example.answer}))


def _in_one_word(example: Example, rng: random.Random, word: str = "") -> Example:
    return _with_form(example, rng.choice(_ONE_WORD_WISHES), word or example.answer.rstrip(".").rsplit(" ", 1)[1])


def _with_form(example: Example, wish: str, answer: str, answer_with_steps: str | None = None) -> Example:
    """wish: has a place for the question."""
    question = wish.format(example.question)
    return replace(example, question=question, answer=answer, answer_with_steps=answer_with_steps)


_REPEAT_WISHES = ("Repeat: {}", "Repeat after me: {}", "Say: {}", "Say this again: {}", "repeat {}", "Please repeat this: {}", "Copy: {}")
_DESCRIBE = (
    "What is in this picture?", "Describe the picture", "What do you see?", "What is shown here?", "Describe this image", "What is this?",
    "What is in the image?", "Tell me what you see", "Describe this picture, please", "", "What does this show?", "Look at this",
    "Please describe what is in the picture", "Can you see this?", "What is drawn here?", "Which shapes and colours are in this picture?",
)  # fmt: skip
_BACKGROUND_QUESTIONS = (
    "What colour is the background?", "Which color is the background?", "background colour?", "What is the colour behind it?",
    "On which colour is it?",
)  # fmt: skip
_COUNT_QUESTIONS = ("How many shapes are there?", "How many things do you see?", "How many objects are in the picture?", "Count the shapes")
_COLOUR_QUESTIONS = ("What colour is it?", "Which colour has the shape?", "What is the colour of the shape?", "colour of the shape?")
_SHAPE_QUESTIONS = ("Which shape is it?", "What shape do you see?", "What shape is this?", "Name the shape", "What is the shape?")
_JSON_WISHES = (
    "{} Answer as JSON.", "{} Reply in JSON.", "{} Answer in JSON only.", "{} as JSON", "{} Return a JSON object.", "In JSON: {}",
    "{} Give me JSON.", "{} JSON please", "Answer in JSON: {}", "{} Use JSON.",
)  # fmt: skip
_ONE_WORD_WISHES = (
    "{} Answer in one word.", "{} One word, please.", "{} In one word.", "{} Just one word.", "{} (one word)",
    "{} Reply with one word only.", "In one word: {}", "Answer with a single word: {}", "{} Use one word.",
)  # fmt: skip
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
_topics = functools.cache(load_topics)


@functools.cache
def _vocabulary() -> list[str]:
    """Every word of the questions about Tandem that is trained."""
    return sorted({word for topic in load_topics("tandem") for question in topic.trained for word in question.split()})


def _topic_example(topic: Topic, rng: random.Random) -> Example:
    return Example(vary(rng.choice(topic.trained), rng, _kept_questions()), topic.answer, topic_reasoning(topic))


@functools.cache
def _kept_questions() -> frozenset[str]:
    topics = (*load_topics("tandem"), *load_topics("small_talk"))
    return frozenset((*outside.held_out(), *(question for topic in topics for question in topic.held_out)))


def _wish(rng: random.Random, scene: Scene | None = None) -> tuple[str, str, bool]:
    """What the user writes, the prompt in it, and whether demo-image can draw that. scene: what to wish for instead of anything."""
    known = scene is not None or rng.random() < 0.75
    prompt = rng.choice(_THINGS)
    if known:
        prompt = phrase(scene or training_scene(rng), rng)
    elif rng.random() < 0.5:
        prompt = f"{prompt} {rng.choice(('on', 'with', 'near', 'in front of'))} {rng.choice(_THINGS)}"
    return rng.choice(_WISHES).format(prompt), prompt, known


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
    for _ in range(rng.choices((0, 1, 2), (0.9, 0.08, 0.02))[0]):
        maker = rng.choice((about_tandem, about_tandem, small_talk, outside_question, small_sum, draw_without_tool))
        past = maker(rng)
        turns += [{"role": "user", "content": past.question}, {"role": "assistant", "content": past.answer}]
    return tuple(turns)
