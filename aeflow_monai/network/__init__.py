"""AE-Flow as a network: frozen encoder, normalizing flows, decoder, and the training objective."""

from aeflow_monai.network.aeflow import AEFlow, AEFlowOutput
from aeflow_monai.network.decoder import Decoder
from aeflow_monai.network.encoder import Encoder
from aeflow_monai.network.flow import LatentFlow
from aeflow_monai.network.loss import AEFlowLoss, MixtureLoss, MixturePrior

__all__ = ["AEFlow", "AEFlowLoss", "AEFlowOutput", "Decoder", "Encoder", "LatentFlow", "MixtureLoss", "MixturePrior"]
