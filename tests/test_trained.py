"""Which trained weights an initialization means, and what is said of them."""

from pathlib import Path

import pytest
import timm
from torch import nn

from tutelage.models import backbones
from tutelage.models.backbones import pretrained_weights, published_simclr, weights_name
from tutelage.models.trained import SIMCLR_FILE, TRAINED, Trained, backbones_with, trained_for
from tutelage.types import InputError

TIMMS = [row for row in TRAINED if row.init != "simclr"]


def test_every_row_is_one_of_timms_and_under_its_license() -> None:
    known = set(timm.list_pretrained())
    for row in TIMMS:
        assert row.name in known, row
        cfg = timm.get_pretrained_cfg(row.name)
        assert cfg is not None and cfg.license == row.license, row


@pytest.mark.parametrize("row", TIMMS, ids=lambda row: row.name)
def test_each_row_is_chosen_by_its_word_or_name(row: Trained) -> None:
    assert weights_name(row.backbone, row.init) == row.name
    assert row.init in ("imagenet", "imagenet++", row.name)


def test_the_documented_table_is_this_one() -> None:
    page = (Path(__file__).parents[1] / "docs" / "initialization.md").read_text()
    for row in TRAINED:
        accuracy = "not stated" if row.top1 is None else f"{row.top1:.1f}"
        assert f"| `{row.init}` | `{row.name}` | {accuracy} | {row.paper} | {row.license} |" in page, row
    assert SIMCLR_FILE.url in page and SIMCLR_FILE.file in page


def test_the_papers_networks() -> None:
    imagenet, plus = trained_for("tf_efficientnet_b7", "imagenet"), trained_for("tf_efficientnet_b7", "imagenet++")
    assert imagenet is not None and (imagenet.name, imagenet.top1) == ("tf_efficientnet_b7.aa_in1k", 84.4)
    assert plus is not None and (plus.name, plus.top1) == ("tf_efficientnet_b7.ns_jft_in1k", 86.8)
    assert backbones_with("simclr") == ["resnet50"]


def test_weights_of_networks_outside_the_table_are_imagenet_alone() -> None:
    assert weights_name("convnext_atto", "imagenet") == "convnext_atto.d2_in1k"
    with pytest.raises(InputError, match=r"imagenet\+\+ has no weights for resnet50.*tf_efficientnet_l2"):
        weights_name("resnet50", "imagenet++")
    with pytest.raises(InputError, match="imagenet has no weights for tf_efficientnet_l2"):
        weights_name("tf_efficientnet_l2", "imagenet")
    with pytest.raises(InputError, match=r"imagenet has no weights for vit_small_patch14_dinov2.*other.*lvd142m.*TAG"):
        weights_name("vit_small_patch14_dinov2", "imagenet")


def test_any_full_name_of_the_backbones_weights_is_taken() -> None:
    assert weights_name("resnet50", "resnet50.tv2_in1k") == "resnet50.tv2_in1k"
    with pytest.raises(InputError, match=r"holds weights of vit_small_patch16_224; .* Set model\.backbone=vit_small"):
        weights_name("resnet50", "vit_small_patch16_224.dino")
    with pytest.raises(
        InputError, match=r"resnet50\.pth is neither a file nor one of .*resnet50\.tv_in1k.*update timm"
    ):
        weights_name("resnet50", "resnet50.pth")
    with pytest.raises(
        InputError, match=r"nowhere/weights\.pth does not exist; random, imagenet, imagenet\+\+, simclr"
    ):
        weights_name("resnet50", "nowhere/weights.pth")


def test_a_row_that_an_older_timm_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "list_pretrained", lambda pattern: ["convnext_tiny.in12k_ft_in1k"])
    with pytest.raises(
        InputError, match=r"convnext_tiny\.fb_in1k is neither .*\(convnext_tiny\.in12k_ft_in1k\).*update"
    ):
        weights_name("convnext_tiny", "imagenet")


def offline(*_: object, **__: object) -> nn.Module:
    raise FileNotFoundError("cannot find the requested files in the local cache\nand more")


def test_a_failed_download_says_how_to_hand_over_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    backbones.is_plain("resnet50")  # asks timm once
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match=r"resnet50\.tv_in1k.*could not be downloaded.*model\.init=PATH/model\.safet"):
        pretrained_weights("resnet50", "imagenet")


def test_published_simclr_weights_are_of_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "load_state_dict_from_hf", offline)
    with pytest.raises(InputError, match=r"could not be downloaded \(cannot find .* cache\).*simclr:PATH/resnet50-1x"):
        published_simclr("resnet50")
    with pytest.raises(InputError, match=r"simclr has no weights for resnet18.*resnet50.*tutelage pretrain"):
        published_simclr("resnet18")
