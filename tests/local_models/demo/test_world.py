"""The renderer, the captions and the checker agree about what is in a picture."""

import random

import pytest

from local_models.demo.captions import caption, phrase, plain_caption, vocabulary
from local_models.demo.checker import judge, read_picture
from local_models.demo.world import COLOURS, SHAPES, is_held_out, random_scene, render, single, training_scene


@pytest.mark.parametrize("shape", SHAPES)
def test_the_checker_names_every_shape(shape: str) -> None:
    for size in ("small", "medium", "large"):
        reading = read_picture(render(single(shape, "green", "white", size)))
        assert [(thing.shape, thing.colour) for thing in reading.things] == [(shape, "green")]


@pytest.mark.parametrize("colour", COLOURS)
def test_the_checker_names_every_colour_and_background(colour: str) -> None:
    other = "black" if colour == "white" else "white"
    assert read_picture(render(single("star", colour, other))).things[0].colour == colour
    assert read_picture(render(single("star", other, colour))).background == colour


def test_a_rendered_scene_is_judged_right_in_every_point() -> None:
    rng = random.Random(0)
    for _ in range(60):
        scene = random_scene(rng, pairs=0.5)
        verdict = judge(scene, render(scene))
        assert verdict.colour, scene
        assert verdict.background, scene
        assert verdict.shape, scene
        assert verdict.relation is not False, scene


def test_a_picture_of_another_scene_is_judged_wrong() -> None:
    scene = single("circle", "red", "blue")
    assert not judge(scene, render(single("circle", "green", "blue"))).colour
    assert not judge(scene, render(single("square", "red", "blue"))).shape
    assert not judge(scene, render(single("circle", "red", "white"))).background


def test_pictures_need_not_be_square() -> None:
    assert render(single("heart", "pink", "black"), 96, 160).size == (96, 160)


def test_one_scene_in_ten_is_kept_from_training() -> None:
    rng = random.Random(1)
    share = sum(is_held_out(random_scene(rng)) for _ in range(4000)) / 4000
    assert 0.07 < share < 0.13
    assert not any(is_held_out(training_scene(rng)) for _ in range(500))


def test_captions_use_only_words_of_the_vocabulary() -> None:
    known, rng = set(vocabulary()), random.Random(2)
    for _ in range(300):
        words = phrase(random_scene(rng), rng).translate(str.maketrans(",.:-", "    ")).split()
        assert set(words) <= known


def test_captions_vary_and_the_plain_one_says_everything() -> None:
    scene = single("circle", "red", "blue")
    rng = random.Random(3)
    assert len({caption(scene, rng) for _ in range(50)}) > 30
    assert plain_caption(scene) == "a red circle on a blue background"


def test_an_unknown_shape_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown shape 'cube'; the world has circle, square"):
        render(single("cube", "red", "blue"))
