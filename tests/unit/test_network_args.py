"""Which layers `--network_args` leaves, and with which rank."""

import pytest

from trainer.common.problems import Problems
from trainer.lora.network_args import KEYS, REFUSED_KEYS, NetworkArgs, layer_ranks, parse_network_args

DOUBLE = (
    *("norm1.linear", "norm1_context.linear"),
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
)
SINGLE = ("norm.linear", "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out")
MODULES = [f"transformer_blocks.{block}.{layer}" for block in range(3) for layer in DOUBLE]
MODULES += [f"single_transformer_blocks.{block}.{layer}" for block in range(4) for layer in SINGLE]


def ranks(*words: str) -> dict[str, int]:
    return layer_ranks(MODULES, 16, parse_network_args(words))


def problems_of(*words: str) -> list[str]:
    with pytest.raises(Problems) as caught:
        ranks(*words)
    return [str(problem) for problem in caught.value.problems]


def test_without_arguments_every_layer_has_the_same_rank():
    assert ranks() == dict.fromkeys(MODULES, 16)
    assert parse_network_args(()) == NetworkArgs()


@pytest.mark.parametrize(("blocks", "count"), [("all", 66), ("double", 42), ("single", 24)])
def test_train_blocks(blocks, count):
    found = ranks(f"train_blocks={blocks}")
    assert len(found) == count
    assert blocks == "all" or all(name.startswith("single_") == (blocks == "single") for name in found)


@pytest.mark.parametrize(
    ("key", "layers"),
    [
        ("img_attn_dim", "to_q to_k to_v to_out.0"),
        ("txt_attn_dim", "add_q_proj add_k_proj add_v_proj to_add_out"),
        ("img_mlp_dim", "ff.net.0.proj ff.net.2"),
        ("txt_mlp_dim", "ff_context.net.0.proj ff_context.net.2"),
        ("img_mod_dim", "norm1.linear"),
        ("txt_mod_dim", "norm1_context.linear"),
    ],
)
def test_a_rank_for_one_type_of_layer_of_the_double_blocks(key, layers):
    found = {name for name, rank in ranks(f"{key}=4").items() if rank == 4}
    wanted = {name for name in MODULES if not name.startswith("single_") and name.endswith(tuple(layers.split()))}
    assert found == wanted


def test_ranks_of_the_single_blocks():
    found = ranks("train_blocks=single", "single_dim=4", "single_mod_dim=0")
    assert found == {name: 4 for name in MODULES if name.startswith("single_") and "norm" not in name}


def test_block_indices():
    found = ranks("train_double_block_indices=0,2", "train_single_block_indices=1-2")
    assert {name.rsplit("blocks.", 1)[0][0] + name.split(".")[1] for name in found} == {"t0", "t2", "s1", "s2"}
    assert all(name.startswith("single_") for name in ranks("train_double_block_indices=none"))
    assert ranks("train_double_block_indices=all") == ranks()


def test_expressions_match_kohyas_and_diffusers_names_and_the_last_one_counts():
    found = ranks(r"network_reg_dims=img_attn_qkv=8, attn\.to_q$=2,single_blocks_[0,3]_=3,proj_o.{1,2}=5")
    assert found["transformer_blocks.1.attn.to_k"] == 8
    assert found["transformer_blocks.1.attn.to_q"] == 2
    assert found["single_transformer_blocks.3.proj_mlp"] == 3
    assert found["single_transformer_blocks.3.proj_out"] == 5
    assert found["single_transformer_blocks.1.attn.to_q"] == 2
    assert found["single_transformer_blocks.1.proj_mlp"] == 16


def test_an_expression_reaches_into_blocks_that_the_indices_leave_out():
    found = ranks("train_double_block_indices=none", "train_single_block_indices=none", "network_reg_dims=to_q=4")
    assert found == {name: 4 for name in MODULES if name.endswith("to_q")}


def test_an_expression_with_an_equals_sign():
    assert parse_network_args(["network_reg_dims=(?=to_q)x?=4"]).reg_dims == (("(?=to_q)x?", 4),)


def test_dropouts_and_loraplus():
    args = parse_network_args(
        ["rank_dropout=0.1", "module_dropout=0", "loraplus_lr_ratio=4", "loraplus_unet_lr_ratio=8"]
    )
    assert (args.rank_dropout, args.module_dropout) == (0.1, 0.0)
    assert (args.loraplus_unet_lr_ratio, args.loraplus_text_encoder_lr_ratio) == (8.0, 4.0)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("img_attn_dim", "is not key=value"),
        ("img_attn_dim=-1", "at least 0"),
        ("img_attn_dim=1.5", "not a whole number"),
        ("img_atn_dim=4", "did you mean img_attn_dim?"),
        ("split_qkv=True", REFUSED_KEYS["split_qkv"]),
        ("train_blocks=triple", "all, double or single"),
        ("train_double_block_indices=2-1", '"2-1"'),
        ("train_double_block_indices=1,x", '"x"'),
        ("train_double_block_indices=1,7", "names 7"),
        ("train_single_block_indices=19", "blocks 0-3"),
        ("rank_dropout=1", "below 1"),
        ("rank_dropout=nan", "not a finite number"),
        ("network_reg_dims=[=4", "not a regular expression"),
        ("network_reg_dims=to_q", "write regex=rank"),
        ("network_reg_dims=nothing_like_it=4", "matches no layer"),
    ],
)
def test_one_wrong_word(word, said):
    (text,) = problems_of(word)
    assert text.startswith("--network_args: ")
    assert said in text


def test_what_reaches_no_layer_is_told():
    assert "txt_attn_dim matches no layer" in problems_of("train_blocks=single", "txt_attn_dim=4")[0]
    assert "leaves none" in problems_of("train_blocks=single", "train_double_block_indices=1")[0]
    assert "no layer is left" in problems_of("train_blocks=single", "single_dim=0", "single_mod_dim=0")[0]


def test_all_mistakes_together():
    assert len(problems_of("a=1", "rank_dropout=x", "single_dim=4", "single_dim=5", "ggpo_beta=1")) == 4


def test_every_documented_key_is_known_and_none_is_both():
    for key in KEYS:
        with pytest.raises(Problems, match=key):
            parse_network_args([f"{key}=\\wrong["])
    assert not KEYS.keys() & REFUSED_KEYS.keys()
