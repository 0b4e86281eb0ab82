"""Models: pure functions on parameters."""

from metajax.models import pretrained
from metajax.models.bilstm import bilstm
from metajax.models.conv4 import conv4
from metajax.models.crnn import crnn
from metajax.models.image import image_encoder
from metajax.models.layers import NORMALIZATIONS, Normalization
from metajax.models.mlp import mlp
from metajax.models.model import Model, from_linen, in_bfloat16
from metajax.models.multitask import Multitask, embedding_heads, multitask
from metajax.models.named import Network, Precision, network
from metajax.models.tcresnet import tcresnet8

__all__ = [
    "NORMALIZATIONS",
    "Model",
    "Multitask",
    "Network",
    "Normalization",
    "Precision",
    "bilstm",
    "conv4",
    "crnn",
    "embedding_heads",
    "from_linen",
    "image_encoder",
    "in_bfloat16",
    "mlp",
    "multitask",
    "network",
    "pretrained",
    "tcresnet8",
]
