"""Questions and wishes outside the demo model's world, in great variety: the model must learn to know what it does not know."""

from __future__ import annotations

import functools
import random
import re
from pathlib import Path

from local_models.demo.tandem_facts import is_held_out

ANSWER = (
    "I am only a small demo model, and that is outside my world: I know Tandem, small sums and simple pictures. "
    "Choose a larger model for this question."
)
REASONING = "This is not about Tandem, a small sum or a simple picture. I do not know it, and I should say so."

_FORMS = (
    "Who discovered {thing}?", "Who painted {thing}?", "Who is the king of {place}?", "What is the population of {place}?",
    "How do {thing} work?",
    "How old is {thing}?", "How many people like {food}?", "When did the {event} end?", "When did the {event} start?",
    "Do you like {topic}s?",
    "Write a haiku about {thing}", "Write a letter to {person}", "Give me advice about {thing}", "What is the largest {topic}?",
    "How far is {place}?",
    "Tell me a story", "Tell me something funny", "What should I {deed}?", "How do I get rid of {thing}?", "How many {topic}s are there?",
    "What are {topic}s?", "Which {topic}s are good?", "Why is {thing} so big?", "Why do people {deed}?", "Write a function to {deed}",
    "Are {topic}s expensive?",
    "What is the speed of {thing}?", "Who was the first {topic}?", "Who was the first person to {deed}?", "What does {topic} mean?",
    "Good {topic}s in {place}?",
    "Who won the {event}?", "Who won {event} in {year}?", "When is the {event}?", "Where was the {event} {year}?", "Who is {person}?",
    "When was {person} born?",
    "Who was {person}?", "What did {person} do?", "Is {person} still alive?", "How old is {person}?", "What is the capital of {place}?",
    "Where is {place}?",
    "How many people live in {place}?", "What is the weather in {place}?", "Will it rain in {place} tomorrow?",
    "How do I get to {place}?", "What time is it in {place}?",
    "Plan a trip to {place}", "Which language do they speak in {place}?", "How far is {place} from {place}?",
    "Who is the president of {place}?",
    "How do I cook {food}?", "Give me a recipe for {food}", "Is {food} healthy?", "How many calories has {food}?",
    "How long do I boil {food}?", "What goes well with {food}?",
    "Write a poem about {thing}", "Tell me a story about {thing}", "Write an essay about {thing}", "Write a song about {thing}",
    "Tell me something about {thing}",
    "What is {thing}?", "Explain {thing}", "What do you think about {thing}?", "Why is {thing} important?", "How does {thing} work?",
    "Where can I buy {thing}?", "How much does {thing} cost?",
    "Who invented {thing}?", "What is the history of {thing}?", "Is {thing} dangerous?",
    "What is the difference between {thing} and {thing}?", "Summarise {book}", "Who wrote {book}?",
    "What happens in {book}?", "Is {book} a good book?", "Translate {thing} into {language}", "How do you say {thing} in {language}?",
    "Teach me {language}",
    "How do I {deed}?", "Can you help me {deed}?", "What is the best way to {deed}?", "Teach me how to {deed}", "I want to {deed}",
    "When should I {deed}?", "Is it hard to {deed}?",
    "Write a program that can {deed}", "What happened in {year}?", "What is the price of {thing} today?", "Tell me the news",
    "Tell me a joke", "Tell me a riddle", "What is the meaning of life?",
    "Do you love me?", "Are you happy?", "Do you have feelings?", "Sing a song", "What is love?", "How tall is {thing}?",
    "What colour is {thing}?", "How heavy is {thing}?",
    "Should I buy {thing}?", "Which is better, {thing} or {thing}?",
    "My {thing} is broken", "I like {thing}", "I hate {food}",
    "What is your favourite {topic}?", "Recommend a {topic}", "Who is the best {topic} in the world?", "Name a famous {topic}",
    "Write Python code to {deed}", "Fix this code: {thing}",
    "Why do cats like {food}?", "What should I eat today?", "Who will win the {event}?", "Tell me about {person}",
    "Tell me about {place}", "What does {person} think about {thing}?",
    "Prove that {thing} exists", "Solve this equation for x", "What is the square root of {year}?", "Which {topic} do you recommend?",
    "{person}", "{place}", "{thing}",
)  # fmt: skip
_WORDS: dict[str, tuple[str, ...]] = {
    "event": (
        "world cup", "Olympic games", "election", "Super Bowl", "Eurovision song contest", "Tour de France", "Champions League",
        "chess championship", "last war", "Nobel prize", "Oscar",
        "football match", "tennis final", "battle of Hastings", "race", "game last night", "marathon", "Grand Prix", "lottery",
        "world series",
    ),
    "person": (
        "Albert Einstein", "Marie Curie", "Napoleon", "Shakespeare", "Mozart", "Ada Lovelace", "Julius Caesar", "Barack Obama",
        "Angela Merkel", "Taylor Swift", "Lionel Messi", "Isaac Newton",
        "Cleopatra", "Leonardo da Vinci", "Alan Turing", "Charles Darwin", "Elon Musk", "Gandhi", "Picasso", "Beethoven",
        "the president", "the pope", "Frida Kahlo", "Queen Victoria", "my neighbour",
        "Aristotle", "Galileo", "Bill Gates", "Grace Hopper", "Linus Torvalds",
    ),
    "place": (
        "France", "Germany", "Japan", "Brazil", "Paris", "London", "New York", "Berlin", "Tokyo", "Rome", "Madrid", "India", "China",
        "Canada", "Kenya", "Egypt", "Norway", "Mexico", "Australia",
        "Vienna", "Moscow", "Chicago", "the moon", "Mars", "Italy", "Spain", "Peru", "Iceland", "Texas", "Zurich", "Lisbon", "Cairo",
        "Argentina", "Sweden", "Poland",
    ),
    "food": (
        "pasta", "rice", "pizza", "an egg", "chicken soup", "bread", "pancakes", "a cake", "chocolate", "potatoes", "curry", "fish",
        "sushi", "coffee", "tea", "cheese", "bananas", "an apple pie",
        "salad", "beans", "noodles", "lasagne", "steak", "tofu",
    ),
    "thing": (
        "the ocean", "a cat", "dogs", "gravity", "black holes", "democracy", "the sun", "bitcoin", "music", "a bicycle",
        "quantum physics", "photosynthesis", "autumn", "the economy", "a car", "trees",
        "inflation", "a house", "evolution", "football", "art", "philosophy", "the internet", "electricity", "a volcano", "money",
        "an elephant", "history", "chess", "a guitar", "rain", "DNA",
        "the stock market", "a laptop computer", "climate change", "happiness", "a telescope", "a dragon", "religion", "atoms",
        "the brain", "water", "time travel", "robots", "a phone", "winter",
        "good morning", "spaghetti", "machine learning", "Kubernetes", "Docker", "Linux", "a database", "JavaScript", "the Roman empire",
        "relativity", "a mountain", "flowers", "a rocket", "snow",
    ),
    "book": (
        "Hamlet", "Faust", "War and Peace", "the Bible", "Harry Potter", "Moby Dick", "the Odyssey", "Don Quixote", "Ulysses", "Dune",
        "The Lord of the Rings", "Romeo and Juliet", "Frankenstein",
        "Pride and Prejudice", "The Hobbit", "Dracula",
    ),
    "language": (
        "French", "German", "Spanish", "Japanese", "Latin", "Chinese", "Italian", "Russian", "Arabic",
        "Dutch", "Korean", "Portuguese"),
    "year": ("1492", "1789", "1914", "1969", "1989", "2001", "2010", "2018", "2022", "2024", "1848", "1066", "2016"),
    "topic": (
        "book", "film", "song", "restaurant", "colour of hair", "player", "painter", "actor", "city", "hobby", "sport", "animal", "band",
        "writer", "series", "car", "food", "hotel",
    ),
    "deed": (
        "learn to swim", "repair a bicycle", "lose weight", "write a letter", "plant a tree", "run a marathon", "add sugar to tea",
        "change a tyre", "open a bank account", "find a job", "paint a wall",
        "sleep better", "stop smoking", "make money", "bake bread", "tie a tie", "clean a carpet", "build a house", "train a dog",
        "sort a list", "play the piano", "use a microscope", "start a fire",
        "set up a tent", "install Windows", "get a visa", "buy a ticket", "read faster", "fly a plane", "fix a leaking tap",
        "draw a portrait by hand", "write a novel", "cut my hair", "parse HTML",
        "reverse a string", "make friends", "pass an exam", "grow tomatoes", "send a parcel", "milk a cow",
    ),
}  # fmt: skip


@functools.cache
def lines() -> tuple[str, ...]:
    """Whole questions, many of which share words with what the model knows."""
    return tuple(Path(__file__).with_name("outside.txt").read_text(encoding="utf-8").splitlines())


def held_out() -> tuple[str, ...]:
    """Questions that are never trained, and asked by the evaluation."""
    return (*_HELD_OUT, *(line for line in lines() if is_held_out(line)))


def question(rng: random.Random) -> str:
    """A question that the model cannot answer; never one of `held_out`."""
    if rng.random() < 0.5:
        return rng.choice([line for line in lines() if not is_held_out(line)])
    while True:
        text = re.sub(r"\{(\w+)\}", lambda match: rng.choice(_WORDS[match[1]]), rng.choice(_FORMS))
        if text not in _HELD_OUT:
            return text[0].upper() + text[1:]


_HELD_OUT = (
    "Who won the world cup?", "What is the capital of Portugal?", "How do I bake a chocolate cake?", "Who painted the Mona Lisa?",
    "Tell me a funny story", "What is the speed of light?",
    "Write a haiku about spring", "Who discovered penicillin?", "How old is the universe?", "Translate good night into Finnish",
    "What should I cook tonight?", "How do I get rid of a cold?",
    "Which stocks should I buy?", "Who was the first man on the moon?", "What is the tallest mountain?",
    "Explain how a car engine works", "Who wrote The Great Gatsby?", "How is the weather today?",
    "What is the population of Nigeria?", "Why is the sky blue?", "How do I learn to dance?", "What is a transistor?",
    "Do you like football?", "How do airplanes fly?", "Who is the king of England?",
    "Give me a recipe for tomato soup", "When did the second world war end?", "What are prime numbers?",
    "Write a function that sorts numbers", "How many planets are there?",
)  # fmt: skip
