"""Estimators: exact, learned, conditional and guided ones, and their networks."""

from estimators.adapters import NetworkAdapter
from estimators.classifier_free import ClassifierFree
from estimators.conditional import cde, cdiffe, cmde, vs_cmde
from estimators.denoising import Denoising
from estimators.diffusers_unet import DiffusersUNet
from estimators.embedding import Embedded, SetEmbedding
from estimators.guidance import Guidance
from estimators.joint_network import JointNetwork
from estimators.mixture import Gaussian, GaussianMixture
from estimators.multiscale import MultiScale
from estimators.networks import PartNetwork, ResidualMLP
from estimators.pretrained import from_diffusers
from estimators.scales import measure
from estimators.sliced import SlicedScoreMatching
from estimators.transition_matching import TransitionMatching
from estimators.truncated import Truncated
from estimators.unet import UNet

__all__ = [
    "ClassifierFree",
    "Denoising",
    "DiffusersUNet",
    "Embedded",
    "Gaussian",
    "GaussianMixture",
    "Guidance",
    "JointNetwork",
    "MultiScale",
    "NetworkAdapter",
    "PartNetwork",
    "ResidualMLP",
    "SetEmbedding",
    "SlicedScoreMatching",
    "TransitionMatching",
    "Truncated",
    "UNet",
    "cde",
    "cdiffe",
    "cmde",
    "from_diffusers",
    "measure",
    "vs_cmde",
]
