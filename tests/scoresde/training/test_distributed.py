"""Several processes do what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import DATA, model, others, sampled, steps, trained, unlike

from scoresde.training import Training
from scoresde.training.distributed import SINGLE_PROCESS, sample
from solvers import DDIM

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Results of two processes, and their folder."""
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("two")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).parents[2] / "processes.py"
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *launch, script, folder]
    subprocess.run(command, env=environment, check=True, timeout=300)
    results = [torch.load(folder / f"{i}.pt", weights_only=True) for i in range(2)]
    assert [result["count"] for result in results] == [2, 2]
    return folder, results


def exactly(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def to_rounding(first, second):
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-10)


def test_two_train_as_one_does(two):
    _, results = two
    exactly(results[0]["whole"], results[1]["whole"])
    to_rounding(results[0]["whole"], trained(SINGLE_PROCESS))


def test_whatever_the_estimator_draws(two):
    for found, other in zip(two[1][0]["others"], others(), strict=True):
        to_rounding(found, trained(SINGLE_PROCESS, other, steps(6)))


def test_parts_of_a_share_are_the_share(two):
    for result in two[1]:
        to_rounding(result["parts"], trained(SINGLE_PROCESS))


def test_one_goes_on_where_two_were_stopped(two):
    folder, results = two
    to_rounding(
        trained(SINGLE_PROCESS, folder=folder / "unfinished", save_every=2), results[0]["whole"]
    )


def test_two_go_on_bit_for_bit(two):
    """Each with the dropout that it would have had, which is not that of the other."""
    _, results = two
    for result in results:
        exactly(result["taken up"], result["dropout"])
    dropped = [result["dropped"] for result in results]
    assert all(0 < part.double().mean() < 0.6 for part in dropped)
    assert not torch.equal(*dropped)
    exactly(results[0]["random"], results[1]["random"])


def test_one_of_two_writes(two):
    folder, _ = two
    assert sorted(path.suffix for path in (folder / "whole").iterdir()) == [".json", ".safetensors"]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_samples_do_not_depend_on_the_number_of_processes(two, count):
    wanted = sampled(SINGLE_PROCESS, count)
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    exactly(wanted, DDIM(4, eta=1.0).sample(model(), (count,), generator=generators))
    for result in two[1]:
        to_rounding(result["samples"][count], wanted)


@pytest.mark.parametrize("name", unlike(0))
def test_processes_with_other_arguments_are_refused_before_any_work(two, name):
    for result in two[1]:
        assert f"processes: expected the same {name} on all" in result["others' arguments"][name]


def test_one_that_is_interrupted_ends_all_and_nothing_is_lost(two):
    for result in two[1]:
        assert result["interrupted"] == "interrupted"
        exactly(result["after"], result["whole"])


def test_what_cannot_be_shared(two):
    for result in two[1]:
        assert "batch_size: expected a multiple of 2 processes, got 7" in result["batch"]
        wanted = "batch_size: expected a multiple of 4 parts of 2 processes, got 12"
        assert wanted in result["parts of a batch"]
        assert "processes: expected the same weights on all" in result["weights"]
    with pytest.raises(ValueError, match="generators: expected one per sample"):
        sample(DDIM(2), model(), [])


class Rounding:
    num_processes, process_index, is_main_process = 1, 0, True
    device, mixed_precision = torch.device("cpu"), "bf16"

    def gather(self, tensor):
        return tensor


def test_precision_is_said_in_one_place():
    with pytest.raises(ValueError, match=r"mixed_precision 'no'.*got bf16"):
        Training(steps=1).fit(model(), DATA, progress=False, processes=Rounding())
