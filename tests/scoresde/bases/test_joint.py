"""Joint events: together and apart."""

import pytest
import torch

from scoresde import DCT, PCA, Haar, Joint
from scoresde.bases.joint import joint as joint_of

PARTS = {"y": (2, 2), "c": DCT((3,)), "x": Haar((1, 4, 4), 1)}


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parts_come_apart_as_they_were(batch, dtype):
    joint = Joint(**PARTS)
    parts = {k: torch.randn(*batch, *s, dtype=dtype) for k, s in joint.shapes.items()}
    found = joint.split(joint.inverse(joint(joint.join(**parts))))
    for name, part in parts.items():
        torch.testing.assert_close(found[name], part)


def test_every_part_is_in_its_own_basis():
    joint = Joint(**PARTS)
    parts = {k: torch.randn(3, *s) for k, s in joint.shapes.items()}
    z = joint(joint.join(**parts))
    torch.testing.assert_close(z[:, joint.slices["c"]], PARTS["c"](parts["c"]))
    torch.testing.assert_close(z[:, joint.slices["x"]], PARTS["x"](parts["x"]))
    own = [f"x.{name}" for name in PARTS["x"].blocks.sizes]
    assert [*joint.blocks.sizes] == ["y", *joint.without(["x"]).blocks.sizes][1:] + own


def test_a_part_of_one_batch_is_shared_by_the_others():
    joint = Joint(y=(1,), x=(2,))
    event = joint.join(y=torch.zeros(1), x=torch.ones(4, 5, 2))
    assert event.shape == (4, 5, 3)


def test_without_some_parts_the_others_are_left():
    joint = Joint(**PARTS)
    assert joint.without(["y", "c"]) is PARTS["x"]
    assert list(joint.without(["c"]).shapes) == ["y", "x"]


def test_numbers_per_part_spread_over_blocks():
    joint = Joint(y=(2,), x=Haar((1, 4, 4), 1))
    assert joint.per_block(x=2.0, y=0.5).tolist() == [0.5, 2.0, 2.0]


def test_a_single_part_is_a_basis_too():
    assert Joint(x=(2,)).blocks.sizes == {"x": 2}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda j: j.join(y=torch.zeros(2, 2)), "events: expected all of"),
        (
            lambda j: j.join(y=torch.zeros(2), c=torch.zeros(3), x=torch.zeros(1, 4, 4)),
            "y: .*shape",
        ),
        (lambda j: j.per_block(y=1.0, z=2.0), "parts: unknown name 'z'. Available: c, x, y"),
        (lambda j: j.per_block(y=1.0), "values: expected one for each"),
        (lambda j: Joint(), "parts: expected at least one"),
    ],
)
def test_bad_parts(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(Joint(**PARTS))


def test_a_part_moves_with_the_whole():
    joint = Joint(y=(1,), x=PCA(torch.eye(3)))
    assert all(buffer.is_meta for buffer in joint.to("meta").buffers())


def test_parts_have_their_own_numbers_where_no_basis_is_given():
    x = torch.randn(4, 5)
    assert torch.equal(joint_of({"y": (2,), "x": (3,)})(x), x)
