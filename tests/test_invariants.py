"""The laws of the mathematics by number, each named by a comment at the tests that hold us to it.

grep -rnE "inv(ariants?|\\.) .*\\b17\\b" tests
"""

import re
from collections import defaultdict
from pathlib import Path

import pytest

INVARIANTS = {
    1: "the kernels obey Chapman and Kolmogorov",
    2: "kernel(s, s) is the identity",
    3: "moments obey their differential equations",
    4: "moments by Euler and Maruyama converge to the kernel",
    5: "equal speeds recover VP",
    6: "equal speeds recover VE",
    7: "equal speeds recover sub-VP",
    8: "alpha^2 + sigma^2 = 1 where variance is preserved",
    9: "the log-SNR strictly falls and hits its end points",
    10: "reading time otherwise leaves the marginals",
    11: "permuting groups permutes everything",
    12: "splitting a group changes nothing",
    13: "independent groups factorise",
    14: "the reverse SDE with the exact score recovers the data's moments",
    15: "ODE and SDE share their marginals, for every eta",
    16: "the ODE forward and back is the identity",
    17: "the likelihood of a Gaussian is exact",
    18: "the likelihood of a mixture is the closed form",
    19: "the density integrates to 1",
    20: "Hutchinson is unbiased, and exact for diagonal Jacobians",
    21: "bases are orthonormal, invertible, and obey Parseval",
    22: "an orthonormal basis leaves the likelihood and turns the score",
    23: "a band's scale enters the likelihood by its log-determinant",
    24: "what minimises denoising score matching does not depend on the weighting",
    25: "denoising minus explicit score matching does not depend on the model",
    26: "the weighted loss bounds -log p, by a gap that is known for a Gaussian",
    27: "denoiser, score, noise and velocity convert into each other",
    28: "E s = 0 and E z.s = -D",
    29: "the Fokker-Planck equation holds",
    30: "CMDE is CDE where y stands still",
    31: "CMDE is CDiffE where y is as fast as x",
    32: "the error of a noisy condition is a difference of informations",
    33: "that error grows with the noise",
    34: "moments of the bridge; the bridge takes marginals to marginals",
    35: "all conditional estimators agree where x and y are independent",
    36: "the KL of what a stage appends, which vanishes with the SNR",
    37: "a new stage keeps the variance of the groups that stay",
    38: "multi-scale diffusion of one group is plain",
    39: "every solver converges at its order",
    40: "exponential solvers are exact for a point mass and on the linear part",
    41: "steps at sampling do not depend on training",
    42: "samples depend on their seed, and not on their neighbours",
    43: "KL(p_t || prior) falls, and is 0 where stationary",
    44: "averaged weights are swapped in and out exactly",
    45: "the gradient of a learned schedule",
    46: "the bound depends on the path of no shared schedule, but on those per component",
}
NAMED = re.compile(r"^def (test_\w+)\(.*# inv(?:ariants?|\.) ([\d, ]+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def tests():
    """Names of tests by the number of an invariant."""
    found = defaultdict(list)
    for path in Path(__file__).parent.rglob("test_*.py"):
        for name, numbers in NAMED.findall(path.read_text()):
            for number in numbers.split(","):
                found[int(number)].append(name)
    return found


@pytest.mark.parametrize("number", INVARIANTS, ids=lambda n: f"{n} {INVARIANTS[n]}")
def test_every_invariant_is_tested(number, tests):
    assert tests[number]


def test_no_other_number_is_claimed(tests):
    assert set(tests) <= set(INVARIANTS)
