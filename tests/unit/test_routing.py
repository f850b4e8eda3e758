"""Words, attention maps and masks of routing; no model is needed."""

from collections.abc import Sequence

import pytest
import torch

from trainer.routing.adapters import TokenMasks, stream_of
from trainer.routing.attention import AttentionMaps, recorded_steps
from trainer.routing.masks import COLOURS, MaskSettings, mask_pixels, masks_from_maps
from trainer.routing.triggers import Trigger, read_class_words, read_triggers, usual_class_words
from trainer.routing.words import Other, RoutedPrompt, route_prompt, token_spans

TOY, GPU = [Trigger("tjtoy toy", "toy")], [Trigger("sparkgpu gpu", "gpu")]


@pytest.mark.parametrize(
    ("text", "class_text", "nouns"),
    [
        ("tjtoy toy holding sparkgpu gpu", "a toy holding a gpu", [["toy"], ["gpu"]]),
        ("a photo of tjtoy toy on a desk", "a photo of a toy on a desk", [["toy"], []]),
        ("my tjtoy toy, sparkgpu gpu and a red sparkgpu gpu", "my toy, a gpu and a red gpu", [["toy"], ["gpu", "gpu"]]),
        ("a bear toy next to a gpu", "a bear toy next to a gpu", [[], []]),
        ("xtjtoy toy, tjtoy toys", "xtjtoy toy, tjtoy toys", [[], []]),
    ],
)
def test_the_class_prompt_has_class_words_in_place_of_triggers(text, class_text, nouns):
    route = route_prompt(text, [TOY, GPU])
    assert route.class_text == class_text
    assert [[class_text[start:end] for start, end in spans] for spans in route.nouns] == nouns
    triggers = [[text[start:end] for start, end in spans] for spans in route.triggers]
    assert triggers == [["tjtoy toy"] * len(nouns[0]), ["sparkgpu gpu"] * len(nouns[1])]
    assert route.called == tuple(index for index, found in enumerate(nouns) if found)


def test_a_trigger_is_found_whatever_its_case_and_white_space():
    route = route_prompt("Tjtoy toy and SPARKGPU  GPU", [TOY, GPU])
    assert route.class_text == "a toy and a gpu"
    assert route.triggers == (((0, 9),), ((14, 27),)) and route.called == (0, 1)
    assert route_prompt("sparkgpu gpu를 든 tjtoy toy", [TOY, GPU]).called == (0, 1)
    _, (mistake,) = read_triggers([("a", {"tjtoy toy": ""}), ("b", {"TJTOY toy": ""})], {})
    assert mistake.where == "b" and "of another LoRA" in mistake.what


def test_other_things_of_the_kind_are_not_the_concept():
    route = route_prompt("a bear toy next to tjtoy toy", [TOY])
    assert route.class_text == "a bear toy next to a toy" and route.nouns == (((21, 24),),)


def test_of_triggers_that_overlap_the_longer_one_counts():
    route = route_prompt("tjtoy toy", [[Trigger("tjtoy", "doll")], TOY])
    assert route.called == (1,) and route.class_text == "a toy"


def test_class_words_of_ones_own_and_an_article():
    assert route_prompt("ohwx on a hill", [[Trigger("ohwx", "old man")]]).class_text == "an old man on a hill"
    route = route_prompt("a photo of ohwx", [[Trigger("ohwx", "the red plush toy")]])
    assert route.class_text == "a photo of the red plush toy" and route.class_text[slice(*route.nouns[0][0])] == "toy"
    assert read_class_words("tjtoy toy = a plush toy") == ("tjtoy toy", "a plush toy")
    assert [read_class_words(line) for line in ("tjtoy", "= a toy", "x =")] == [None] * 3
    assert (usual_class_words("tjtoy plush toy"), usual_class_words("ohwx")) == ("plush toy", "")


def test_words_are_found_among_tokens():
    def count(text: str) -> int:  # two letters a token, from each word's start
        return sum((len(word) + 1) // 2 for word in text.split())

    assert token_spans("tjtoy toy and gpu", [(0, 9), (14, 17)], count) == ((0, 5), (7, 9))
    assert token_spans('"gpu"', [(1, 4)], count) == ((1, 2),)


def test_attention_is_the_mean_share_of_the_words():
    torch.manual_seed(0)
    maps = AttentionMaps([[[(1, 3)], []], [[(0, 1)], [(2, 4)]]], [4, 6], "cpu")
    expected = torch.zeros(2, 2, 5)
    for _ in range(2):
        queries, keys = torch.randn(2, 5, 6, 8), torch.randn(2, 9, 6, 8)
        maps.add(queries, keys)
        for image, (length, groups) in enumerate([(4, [[1, 2], []]), (6, [[0], [2, 3]])]):
            for head in range(6):
                scores = queries[image, :, head] @ keys[image, :length, head].T / 8**0.5
                for group, tokens in enumerate(groups):
                    expected[image, group] += scores.softmax(-1)[:, tokens].sum(-1) / 12
    torch.testing.assert_close(maps.mean(), expected)
    once = AttentionMaps([[[(0, 1)]]], [4], "cpu")
    once.add(queries[:1], keys[:1])
    torch.testing.assert_close(once.log_mean(), once.mean().log())


def test_the_recorded_steps_are_early_and_never_none():
    assert recorded_steps(20) == range(2, 12) and recorded_steps(28) == range(3, 17)
    assert [len(recorded_steps(count)) for count in (1, 2, 3, 4)] == [1, 1, 2, 2]


HARD = MaskSettings(smooth=0, grow=0)


def naming(*called: bool, others: Sequence[Other] = ()) -> RoutedPrompt:
    """A prompt that names these adapters' concepts, each once, and other things."""
    spans = tuple(((0, 1),) if each else () for each in called)
    return RoutedPrompt("", "", spans, spans, tuple(others))


BOTH = [naming(True, True)]


def two_things() -> tuple[torch.Tensor, torch.Tensor]:
    """Maps [1, 2, 36] of 6 x 6 tokens: a thing in columns 0 and 1, another in 4 and 5; the first word draws attention
    to both, the second to little anywhere, but more on its own thing."""
    first = torch.tensor([0.5, 0.5, 0.01, 0.01, 0.4, 0.4]).expand(6, 6)
    second = torch.tensor([0.02, 0.02, 0.01, 0.01, 0.06, 0.06]).expand(6, 6)
    maps = torch.stack([first, second]).flatten(1)[None]
    return maps, maps.log()


def test_each_thing_is_the_word_s_that_draws_more_than_usual_there():
    masks = masks_from_maps(*two_things(), 6, 6, BOTH, HARD)[0].view(2, 6, 6)
    assert masks[0, 0].tolist() == [1, 1, 0, 0, 0, 0] and masks[1, 0].tolist() == [0, 0, 0, 0, 1, 1]
    grown = masks_from_maps(*two_things(), 6, 6, BOTH, MaskSettings(smooth=0, grow=1 / 6))[0].view(2, 6, 6)
    assert grown[0, 0].tolist() == [1, 1, 1, 0, 0, 0] and grown[1, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_a_token_follows_its_neighbours():
    maps, log_maps = two_things()
    log_maps.view(1, 2, 6, 6)[0, :, 2, 5] = torch.tensor([0.5, 0.02]).log()  # one token of the other's
    odd = masks_from_maps(maps, log_maps, 6, 6, BOTH, HARD)[0].view(2, 6, 6)
    assert odd[0, 2, 5] == 1
    smooth = masks_from_maps(maps, log_maps, 6, 6, BOTH, MaskSettings(smooth=1 / 6, grow=0))[0].view(2, 6, 6)
    assert smooth[1, 2, 5] == 1 and smooth[1, :, 4:].all() and not smooth[0, :, 4:].any()


def test_masks_exclude_one_another():
    torch.manual_seed(0)
    called = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])
    for settings in (MaskSettings(), MaskSettings(softness=0.4, smooth=1 / 4, grow=1 / 4), HARD):
        maps = torch.rand(4, 3, 64)
        masks = masks_from_maps(maps, maps.log(), 8, 8, [naming(*row) for row in called.tolist()], settings)
        assert masks.max() > 0 and masks.min() >= 0 and masks.sum(1).max() <= 1
        assert ((masks.sum(2) > 0) == called).all()


def test_a_concept_that_is_not_called_has_no_mask_and_takes_nothing():
    maps = torch.rand(1, 2, 16)
    alone = masks_from_maps(maps[:, :1], maps[:, :1].log(), 4, 4, [naming(True)])
    both = masks_from_maps(maps, maps.log(), 4, 4, [naming(True, False)])
    assert torch.equal(both[:, :1], alone) and not both[:, 1].any()


def test_a_soft_mask_rises_around_the_threshold():
    maps = torch.linspace(0, 1, 11)[None, None].repeat(1, 1, 11)
    settings = MaskSettings(0.5, softness=0.4, smooth=0, grow=0)
    masks = masks_from_maps(maps, maps.log(), 11, 11, [naming(True)], settings)
    torch.testing.assert_close(masks[0, 0, [3, 4]], torch.tensor([0, 0.25]))
    torch.testing.assert_close(masks[0, 0, [6, 7]], torch.tensor([0.75, 1]))


BALL, BEACH = Other((0, 1), is_place=False), Other((0, 1), is_place=True)


def test_what_belongs_to_another_thing_is_not_the_concept_s():
    maps, log_maps = two_things()  # of the concept, and of the other thing
    masks = masks_from_maps(maps, log_maps, 6, 6, [naming(True, others=[BALL])], HARD)
    assert masks.shape == (1, 1, 36) and masks.view(6, 6)[0].tolist() == [1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("place", [False, True])
def test_what_is_all_around_takes_nothing_of_the_concept(place: bool):
    maps, _ = two_things()
    maps[:, 0, :] = torch.tensor([0.5, 0.5, 0.5, 0.01, 0.01, 0.01]).expand(6, 6).flatten()
    maps[:, 1, :] = torch.tensor([0.2, 0.1, 0.05, 0.3, 0.3, 0.3]).expand(6, 6).flatten()  # not even in the thing
    masks = masks_from_maps(maps, maps.log(), 6, 6, [naming(True, others=[BEACH if place else BALL])], HARD)
    assert masks.view(6, 6)[0].tolist() == [1, 1, 1, 0, 0, 0]


def two_toys(second: float) -> torch.Tensor:
    """Maps [1, 2, 36]: two separate parts with attention to the concept, none of them with attention to a ball."""
    concept = torch.tensor([0.4, 0.4, 0.01, 0.01, second, second]).expand(6, 6)
    return torch.stack([concept, torch.full((6, 6), 0.1)]).flatten(1)[None]


def test_next_to_another_thing_a_concept_is_in_one_place():
    maps = two_toys(second=0.5)
    there = masks_from_maps(maps, maps.log(), 6, 6, [naming(True, others=[BALL])], HARD).view(6, 6)
    assert there[0].tolist() == [0, 0, 0, 0, 1, 1]  # where there is more attention
    everywhere = masks_from_maps(maps, maps.log(), 6, 6, [naming(True, others=[BEACH])], HARD).view(6, 6)
    assert everywhere[0].tolist() == [1, 1, 0, 0, 1, 1]
    crumb = two_toys(second=0.01)
    crumb.view(2, 6, 6)[0, 0, 5] = 0.5  # one token of more attention is no place for a concept
    kept = masks_from_maps(crumb, crumb.log(), 6, 6, [naming(True, others=[BALL])], HARD).view(6, 6)
    assert kept[0].tolist() == [1, 1, 0, 0, 0, 0] and kept[5].tolist() == [1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "things", "places"),
    [
        ("a 3d render of tjtoy toy next to an orange ball on a beach", ["orange ball"], ["beach"]),
        ("a red ball and tjtoy toy", ["red ball"], []),
        ("sparkgpu gpu on top of a green cube in the server room", ["green cube"], ["server room"]),
        ("tjtoy toy wearing a hat, highly detailed, 4k", ["hat"], []),
        ("masterpiece, tjtoy toy in a cave, a small dragon", ["small dragon"], ["cave"]),
        ("tjtoy toy is red, behind a ring", ["ring"], []),
        ("tjtoy toy holding sparkgpu gpu in a datacenter", [], ["datacenter"]),
        ("tjtoy toy", [], []),
    ],
)
def test_other_things_that_a_prompt_names(text: str, things: list[str], places: list[str]):
    route = route_prompt(text, [TOY, GPU])
    found = {False: [], True: []}
    for other in route.others:
        found[other.is_place].append(route.class_text[slice(*other.span)])
    assert (found[False], found[True]) == (things, places)
    assert len(route.groups) == 2 + len(route.others)


def test_masks_as_a_picture():
    pixels = mask_pixels(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 1, 2, 16, 32)
    assert pixels.shape == (16, 32, 3) and pixels.dtype == torch.uint8
    assert tuple(pixels[8, 4].tolist()) == COLOURS[0] and pixels[8, 28].tolist() == [40, 40, 40]


@pytest.mark.parametrize(
    ("name", "stream"),
    [
        ("transformer_blocks.0.attn.to_q", "image"),
        ("transformer_blocks.0.attn.add_q_proj", "text"),
        ("transformer_blocks.11.attn.to_add_out", "text"),
        ("transformer_blocks.0.ff_context.net.2", "text"),
        ("transformer_blocks.0.ff.net.2", "image"),
        ("transformer_blocks.0.norm1_context.linear", "text"),
        ("single_transformer_blocks.0.proj_out", "both"),
        ("context_embedder", "text"),
        ("time_text_embed.text_embedder.linear_1", None),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", None),
    ],
)
def test_whose_tokens_a_layer_reads(name: str, stream: str | None):
    assert stream_of(name) == stream


def test_masks_of_both_streams_have_the_text_first():
    masks = TokenMasks(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.5, 0.25, 0.0]]]))
    assert masks.of(0, "both").flatten().tolist() == [1, 0, 0.5, 0.25, 0]
    assert masks.of(0, "text").shape == (1, 2, 1) and masks.of(0, "image").shape == (1, 3, 1)
