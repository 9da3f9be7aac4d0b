"""AE-Flow: an encoder, one flow per encoder stage, and a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from aeflow_monai.network.decoder import Decoder
from aeflow_monai.network.encoder import Encoder
from aeflow_monai.network.flow import LatentFlow, log_likelihood_per_channel

__all__ = ["AEFlow", "AEFlowOutput"]


class AEFlowOutput(NamedTuple):
    """Output of AE-Flow for a batch of images; one list entry per encoder stage, finest first.

    Attributes:
        latents: z', each (N, C_i, h_i, w_i).
        log_likelihoods: each (N, 1, h_i, w_i), in nats per channel, including the log-determinant.
        reconstruction: (N, C, H, W) in [0, 1].
        features: encoder features, each (N, C_i, h_i, w_i).
        is_target: which images were to be reconstructed, (N,), boolean; all if None.
    """

    latents: list[Tensor]
    log_likelihoods: list[Tensor]
    reconstruction: Tensor
    features: Sequence[Tensor] = ()
    is_target: Tensor | None = None


class AEFlow(nn.Module):
    """Autoencoder with a normalizing flow as bottleneck.

    The encoder's features of each stage go through a separate flow; the decoder reconstructs the image from all
    latents. The network of the paper has one stage.

    Args:
        encoder: computes the features; there is one flow for each of its stages.
        n_steps: number of steps of each flow.
        subnet: coupling subnet, "conv" or "resnet".
        hidden_channels: width of the "conv" subnet, for every stage; if None, half of each stage's channels, at most
            64.
        clamp: bound of a coupling's log-scale, in nats.
        decoder_channels: width of each decoder block but the last, coarsest first; if None, a default for each stride.
        seed: seed of the channels' rotations or permutations.
        feature_norm: standardisation of the features before the flows: "channel" (by the first training batch), "image"
            (each image by itself, then by the first batch), or None.
        mixing: mixing of the channels between flow steps: "linear" (learned) or "permutation" (fixed).

    Raises:
        ValueError: unknown subnet, feature_norm or mixing, a number out of range, or decoder widths that do not fit the
            strides.

    Example:
        >>> import torch
        >>> model = AEFlow(Encoder("tf_efficientnet_lite0", stages=[2, 3]), n_steps=2)
        >>> output = model(torch.rand(1, 1, 64, 64))
        >>> [tuple(m.shape) for m in output.log_likelihoods], tuple(output.reconstruction.shape)
        ([(1, 1, 8, 8), (1, 1, 4, 4)], (1, 1, 64, 64))

    Source: Zhao, Ding, Zhang, "AE-FLOW: Autoencoders with Normalizing Flows for Medical Images Anomaly Detection",
    ICLR 2023.
    """

    def __init__(
        self,
        encoder: Encoder,
        n_steps: int = 8,
        subnet: str = "conv",
        hidden_channels: int | None = None,
        clamp: float = 2.0,
        decoder_channels: Sequence[int] | None = None,
        seed: int = 0,
        feature_norm: str | None = "channel",
        mixing: str = "linear",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.flows = nn.ModuleList(
            LatentFlow(channels, n_steps, subnet, hidden_channels, clamp, seed + stage, feature_norm, mixing)
            for stage, channels in enumerate(encoder.channels)
        )
        self.decoder = Decoder(encoder.channels, encoder.strides, encoder.in_channels, decoder_channels)

    def forward(
        self, image: Tensor, features: Sequence[Tensor] | None = None, is_target: Tensor | None = None
    ) -> AEFlowOutput:
        """Encode the images, map the features to latents, and reconstruct the images from them.

        Args:
            image: (N, C, H, W) in [0, 1]; H and W multiples of the encoder's largest stride.
            features: precomputed encoder features of these images; see `Encoder.forward`.
            is_target: which images are to be reconstructed, (N,), boolean; all if None. The reconstruction of the
                others is undefined: the training loss ignores it, and leaving it out saves time.

        Returns:
            Latents and log-likelihood maps per stage, and the reconstruction.

        Raises:
            ValueError: height or width is not a multiple of the largest stride, or the number of channels differs.
        """
        stride = self.encoder.strides[-1]
        if image.shape[-2] % stride or image.shape[-1] % stride:
            raise ValueError(
                f"Height and width have to be multiples of the encoder's largest stride, {stride}; got "
                f"{tuple(image.shape[-2:])}. Use the transforms Resized or DivisiblePadd."
            )
        stages = self.encoder(image) if features is None else features
        latents, log_likelihoods = [], []
        for flow, stage in zip(self.flows, stages, strict=True):
            latent, log_abs_det_jacobian = flow(stage)
            latents.append(latent)
            log_likelihoods.append(log_likelihood_per_channel(latent, log_abs_det_jacobian))
        return AEFlowOutput(latents, log_likelihoods, self._reconstruction(latents, is_target), stages, is_target)

    def _reconstruction(self, latents: list[Tensor], is_target: Tensor | None) -> Tensor:
        # the decoder runs even without a target, since distributed processes wait for a gradient of every parameter
        if is_target is not None and 0 < int(is_target.sum()) < len(is_target):
            some: Tensor = self.decoder([latent[is_target] for latent in latents])
            return some.new_zeros(len(is_target), *some.shape[1:]).index_put((is_target,), some)
        whole: Tensor = self.decoder(latents)
        return whole
