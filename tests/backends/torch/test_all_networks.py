"""Every torchvision classifier and one network of nearly every timm family: `make test-all`."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

from xfer.plan.model_map import ModelMap
from xfer.sources.timm import TimmSource
from xfer.sources.torchvision import TorchvisionSource

SIDE = 64  # as small as most networks take them; transformers are built for it
OTHER_SIDES = {
    "torchvision/inception_v3": 96,
    "timm/crossvit_tiny_240": 240,
    "timm/efficientformer_l1": 224,
    "timm/inception_resnet_v2": 96,
    "timm/inception_v3": 96,
    "timm/inception_v4": 96,
    "torchvision/vit_h_14": 56,
    "torchvision/maxvit_t": 224,
}
# A table that all blocks share is made with dropout in train mode: below a cut it is frozen, so it makes none there.
FROZEN = {"timm/vit_srelpos_small_patch16_224": ("shared_rel_pos",)}
TWO_STREAMS = {
    "timm/crossvit_tiny_240",
    "timm/pit_ti_224",
    "timm/tnt_s_legacy_patch16_224",
}  # from the first block to the last: no cut between blocks
TORCHVISION = [f"torchvision/{name}" for name in TorchvisionSource().models()]
TIMM = [
    "beit_base_patch16_224",
    "eca_botnext26ts_256",
    "mobileone_s1",
    "cait_xxs24_224",
    "coat_tiny",
    "convit_tiny",
    "convmixer_1024_20_ks9_p14",
    "convnext_atto_rms",
    "cpubone_nano",
    "crossvit_tiny_240",
    "csatv2",
    "cs3darknet_focus_s",
    "cspnext_tiny",
    "davit_tiny",
    "deit_tiny_patch16_224",
    "densenet201",
    "dla60x_c",
    "dpn107",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientnet_lite0",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_m0",
    "eva02_tiny_patch14_224",
    "fasternet_t0",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "ghostnet_050",
    "hardcorenas_b",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "sam2_hiera_tiny",
    "hrnet_w18_small",
    "iformer_t",
    "inception_next_atto",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnetv2_small",
    "levit_384_s8",
    "lowformer_b0",
    "mambaout_femto",
    "coatnet_pico_rw_224",
    "poolformerv2_s12",
    "gmlp_ti16_224",
    "mobilenetv3_small_050",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "nest_tiny",
    "nextvit_small",
    "nf_regnet_b0",
    "pit_ti_224",
    "pvt_v2_b0",
    "rdnet_tiny",
    "regnetx_002",
    "repghostnet_050",
    "repvit_m0_9",
    "res2next50",
    "resnest26d",
    "resnet10t",
    "resnetv2_18",
    "rexnet_100",
    "selecsls60",
    "legacy_seresnet18",
    "shvit_s1",
    "skresnet18",
    "starnet_s050",
    "swiftformer_xs",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224",
    "tiny_vit_5m_224",
    "tnt_s_legacy_patch16_224",
    "tresnet_m",
    "twins_svt_small",
    "vgg11",
    "visformer_tiny",
    "flexivit_small",
    "vit_tiny_r_s16_p8_224",
    "vit_srelpos_small_patch16_224",
    "samvit_base_patch16_224",
    "vitamin_small_224",
    "volo_d1_224",
    "ese_vovnet19b_slim_dw",
    "legacy_xception",
    "xception41p",
    "xcit_nano_12_p8_224",
]


def test_the_lists_are_whole() -> None:
    assert len(TORCHVISION) == 80
    assert len(TIMM) == len(set(TIMM)) >= 80
    assert set(TIMM) <= set(TimmSource().models())


@pytest.mark.slow
@pytest.mark.parametrize("model", [*TORCHVISION, *(f"timm/{name}" for name in TIMM)])
def test_prefix_and_suffix_equal_the_whole(
    model: str, describe_model: Callable[..., ModelMap], build_model: Any, assert_covers: Any, assert_segments_equal_whole: Any
) -> None:
    size = OTHER_SIDES.get(model, SIDE)
    found = describe_model(model, size)
    network = build_model(model, size)
    assert found.traced
    assert len(found.cuts) >= 3
    assert len(found.stages) >= (1 if model in TWO_STREAMS else 2)
    assert_covers(network, found)
    assert_segments_equal_whole(network, found, at_most=8, frozen=FROZEN.get(model, ()))
    del network
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("model", TORCHVISION)
def test_stages_at_the_native_size(model: str, describe_model: Callable[..., ModelMap]) -> None:
    found = describe_model(model)
    assert 3 <= len(found.stages) <= 6
    assert all(cut.layout != "vector" or cut.groups_before >= len(found.groups) - 2 for cut in found.cuts[1:])
