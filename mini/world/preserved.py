"""Prompts of the images that the demo preserves: other toys and cards, alone, together and next to other things.

`python -m mini.world.preserved > flux_data/preserved_prompts.txt` writes those of demo_gpu.toml.
"""

import random

from mini.world.captions import PLACE_PHRASES, with_article
from mini.world.scene import COLOURS, THINGS, TOYS
from mini.world.scenes import prompts_json, tuning_prompts_json

COUNT = 200  # images in flux_data/regularisation
IN_FILE = 800
PLACES_IN_TURN = ("studio", "desk", "kitchen", "snow", "forest", "meadow", "moon", "datacenter", "desert", "beach")


def preserved_prompts(count: int = COUNT) -> list[tuple[str, str]]:
    """Names and texts, each name like "001_studio". Of ten in the same place, four have a toy and a card.

    The base model generates these images (mini/training/images/preserved.py), so that what is preserved is what the
    model draws, not what the renderer does.
    """
    rng = random.Random(5)
    return [_prompt(number, rng) for number in range(count)]


def prompt_file() -> str:
    """The text of flux_data/preserved_prompts.txt: 800 different prompts, none of which scores or serves to tune."""
    asked = (each for prompts in (prompts_json(), tuning_prompts_json()) for each in prompts.values())
    used = {prompt["prompt"] for each in asked for prompt in each}
    texts = dict.fromkeys(text for _, text in preserved_prompts(IN_FILE * 5 // 4))
    return "".join(f"{text}\n" for text in [text for text in texts if text not in used][:IN_FILE])


def _prompt(number: int, rng: random.Random) -> tuple[str, str]:
    place = PLACES_IN_TURN[number % len(PLACES_IN_TURN)]
    colour, other = rng.sample(list(COLOURS), 2)
    relation = rng.choice(("holding", "next to", "in front of"))
    toy, card = with_article(f"{colour} {_toy(rng)}"), f"{other} gpu"
    turn = number // len(PLACES_IN_TURN) % 10
    if turn < 3:
        words = f"{toy} {relation} {with_article(card)}"
    elif turn < 4:
        words = f"{with_article(card)} next to {toy}"
    elif turn < 5:
        words = toy
    elif turn < 6:
        words = with_article(f"{colour} gpu")
    elif turn < 8:
        words = f"{toy} {relation} {with_article(f'{other} {rng.choice(THINGS)}')}"
    elif turn < 9:
        relation = rng.choice(("next to", "on top of"))
        words = f"{with_article(f'{colour} gpu')} {relation} {with_article(f'{other} {rng.choice(THINGS)}')}"
    else:
        words = f"{toy} next to {with_article(f'{other} {_toy(rng)}')}"
    return f"{number + 1:03}_{place}", f"{words} {PLACE_PHRASES[place][0]}"


def _toy(rng: random.Random) -> str:
    """ "toy" in two of three cases, else a kind of toy."""
    return rng.choice(("toy", "toy", f"{rng.choice(TOYS)} toy"))


if __name__ == "__main__":
    print(prompt_file(), end="")
