"""Orthonormal bases: what turns events into flat coefficients and back."""

from scoresde.bases.basis import Basis
from scoresde.bases.dct import DCT
from scoresde.bases.haar import Haar
from scoresde.bases.identity import Identity
from scoresde.bases.joint import Joint
from scoresde.bases.packed import Packed
from scoresde.bases.pca import PCA
from scoresde.bases.wavelet import Wavelet

__all__ = ["DCT", "PCA", "Basis", "Haar", "Identity", "Joint", "Packed", "Wavelet"]
