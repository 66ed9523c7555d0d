import dataclasses
import json

import pytest

from model.config import PRESETS, R50_FPN, R101_FPN, TINY, from_json, load, to_json
from model.weights import families
from pipeline.command import UserError
from pipeline.config_overrides import override


@pytest.mark.parametrize("name", list(PRESETS))
def test_json_and_back(name):
    assert from_json(json.loads(json.dumps(to_json(PRESETS[name])))) == PRESETS[name]


def test_a_file_of_an_earlier_version_means_what_it_meant():
    written = to_json(TINY)
    del written["rpn"]["min_size"], written["roi_align"]
    assert from_json(written) == TINY


def test_presets_train_on_as_many_proposals_as_the_recipe_that_they_follow():
    assert R50_FPN.rpn.proposals_train == R101_FPN.rpn.proposals_train == families.detectron2().rpn.proposals_train == 1500
    assert families.torchvision().rpn.proposals_train == 2000


def test_a_file_of_a_later_version_is_refused():
    with pytest.raises(UserError, match="from_the_future"):
        from_json(to_json(TINY) | {"from_the_future": 1})


@pytest.mark.parametrize(
    "content",
    [
        *(b"[]", b"null", b"{", b"\x91\xff", pytest.param(b"[" * 100_000, id="nested"), None),
        *(b'{"train": []}', b'{"train": {"steps": "x"}}', b'{"backbone": {"blocks": {}}}'),
    ],
)
def test_a_file_that_is_no_configuration_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(
        UserError, match=r"config\.json: not a configuration \(.+\); name a directory that model\.train or"
    ) as error:
        load(tmp_path / "config.json")
    assert "\n" not in str(error.value)


SECTIONS = ("backbone", "rpn", "roi_align", "box_head", "keypoint_head", "train", "inference")
NUMBERS = [
    (section, field.name)
    for section in SECTIONS
    for field in dataclasses.fields(getattr(TINY, section))
    if any(kind in field.type for kind in ("int", "float"))
]


@pytest.mark.parametrize(("section", "field"), NUMBERS)
def test_every_number_is_checked_by_its_own_section(section, field):
    """Also those that somebody adds: no field of a section takes a negative number, or one that is none."""
    part = getattr(TINY, section)
    value = getattr(part, field)
    for wrong in (-1, float("nan")):
        with pytest.raises(UserError, match=rf"{section}\.{field}=(-1|nan): must be") as error:
            dataclasses.replace(part, **{field: (wrong,) * len(value) if isinstance(value, tuple) else wrong})
        assert "\n" not in str(error.value)


def test_override_sets_one_value():
    changed = override(TINY, ["rpn.nms_threshold=0.6", "data.short_edges=[96,128]", "data.flip=true"])
    assert (changed.rpn.nms_threshold, changed.data.short_edges, changed.data.flip) == (0.6, (96, 128), True)


@pytest.mark.parametrize("text", ["96,128", "[96,128]", "[96, 128]", "(96, 128)", "96, 128,"])
def test_lists_are_taken_as_people_write_them(text: str) -> None:
    assert override(TINY, [f"data.short_edges={text}"]).data.short_edges == (96, 128)
    assert override(TINY, ["data.short_edges=96"]).data.short_edges == (96,)


def test_a_message_shows_a_list_as_it_can_be_given() -> None:
    with pytest.raises(UserError, match=r"train\.decay_at is 0\.7777777777777778,0\.9259259259259259; give"):
        override(TINY, ["train.decay_at=late"])
    with pytest.raises(UserError, match=r"data\.flip is false; give"):
        override(TINY, ["data.flip=maybe"])


def test_values_that_depend_on_each_other_come_in_any_order():
    changed = override(TINY, ["data.jitter_canvas=256", "data.anchors=online"])
    assert (changed.data.jitter_canvas, changed.data.anchors) == (256, "online")
    with pytest.raises(UserError, match=r"add data\.anchors=online"):
        override(TINY, ["data.jitter_canvas=256"])


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("rpn.nms_treshold=0.6", "nms_threshold"),
        ("rpm.nms_threshold=0.6", "rpn"),
        ("rpn.nms_threshold", "section.field=value"),
        ("data.short_edges=abc", "of that type"),
        ("backbone.norm=batch", "of that type"),
        ("rpn.top_k_train=-5", "1 or more"),
        ("train.seed=-1", "0 or more"),
        ("train.seed=9223372036854775808", "9223372036854775807 or less"),
        ("train.steps=10000000000000000000000", "1000000000 or less"),
        ("train.global_batch_size=1000000000", "65536 or less"),
        ("train.learning_rate=-0.1", "0 or more"),
        ("backbone.width=6", "multiple of 4"),
        ("rpn.nms_threshold=2", "between 0 and 1"),
        ("inference.nms_threshold=7", "between 0 and 1"),
        ("inference.score_threshold=1.5", "between 0 and 1"),
        ("box_head.positive_fraction=3", "between 0 and 1"),
        ("box_head.rois=3", "their product must be 1 or more"),
        ("train.decay_at=[0.5,2]", "decay_at=2.0: must be between 0 and 1"),
        ("train.momentum=5", "between 0 and 1"),
        ("backbone.blocks=3", "must be 4 numbers, one for each stage C2…C5"),
        ("backbone.pixel_mean=[0.5,0.5]", "must be 3 numbers, one for each colour"),
        ("backbone.pixel_std=[1,0,1]", "above 0"),
        ("anchors.strides=[4,8,16,32,128]", r"must be \[4, 8, 16, 32, 64\]"),
        ("backbone.pixel_range=0", "above 0"),
    ],
)
def test_a_wrong_value_is_one_line(assignment, words):
    with pytest.raises(UserError, match=words) as error:
        override(TINY, [assignment])
    assert "\n" not in str(error.value)


def test_a_number_beyond_any_float_is_one_line() -> None:
    value = to_json(TINY)
    value["rpn"]["nms_threshold"] = 10**400
    with pytest.raises(UserError, match=r"config\.rpn: int too large to convert to float"):
        from_json(value)
    with pytest.raises(UserError, match=r"rpn\.nms_threshold is 0\.7"):
        override(TINY, [f"rpn.nms_threshold={10**400}"])
