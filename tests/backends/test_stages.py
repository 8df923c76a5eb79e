from __future__ import annotations

from xfer.backends.stages import Sized, stages


def chw(side: int, kind: str = "Block", n: int = 10) -> Sized:
    return Sized(kind, n, (8, side, side), "chw")


def numbers(groups: list[Sized], input_size: int = 224) -> list[int]:
    return [int(stage.removeprefix("stage")) for stage in stages(groups, input_size=input_size)]


def test_a_stage_is_a_run_of_one_resolution_rounded_to_powers_of_two() -> None:
    assert numbers([chw(149), chw(147), chw(73), chw(35), chw(35), chw(17)], 299) == [0, 0, 1, 2, 2, 3]


def test_vectors_and_what_has_no_size_join_what_stands_before() -> None:
    vector, token = Sized("Linear", 100, (4096,), "vector"), Sized("tensor", 1, None, None)
    assert numbers([token, chw(112), token, chw(56), vector, vector]) == [0, 0, 0, 1, 1, 1]
    assert numbers([vector, vector]) == [0, 0]


def test_a_finer_branch_does_not_go_back() -> None:
    assert numbers([chw(56), chw(28), chw(56), chw(28), chw(14)]) == [0, 1, 1, 1, 2]


def test_pooled_maps_and_single_tokens_have_no_resolution() -> None:
    assert numbers([chw(28), chw(7), chw(1, "Conv2d"), Sized("Block", 10, (1, 192), "tokens")]) == [0, 1, 1, 1]


def test_blocks_at_one_resolution_make_four_equal_runs() -> None:
    tokens = [Sized("PatchEmbed", 5, (196, 192), "tokens"), Sized("tensor", 1, None, None)]
    blocks = [Sized("Block", 100, (197, 192), "tokens")] * 14
    norm = [Sized("LayerNorm", 2, (197, 192), "tokens")]
    assert numbers([*tokens, *blocks, *norm]) == [0, 0, *[1] * 4, *[2] * 4, *[3] * 3, *[4] * 3, 4]


def test_a_convolutional_stem_below_such_blocks_is_one_stage() -> None:
    assert numbers([chw(112, "Conv"), chw(56, "Conv"), chw(28, "Conv"), *[chw(14, n=100)] * 4]) == [0, 0, 0, 1, 2, 3, 4]


def test_blocks_that_are_few_or_not_most_of_the_network_follow_their_resolution() -> None:
    assert numbers([chw(56, "Stem"), *[chw(56)] * 3]) == [0, 0, 0, 0]
    assert numbers([chw(112, "Other", 500), *[chw(56, n=100)] * 4]) == [0, 1, 1, 1, 1]
