"""Models: two pure functions each."""

from metajax.models.conv4 import conv4
from metajax.models.mlp import mlp
from metajax.models.model import Model, from_linen
from metajax.models.norm import NORMALIZATIONS, Normalization
from metajax.models.tcresnet import tcresnet8

__all__ = ["NORMALIZATIONS", "Model", "Normalization", "conv4", "from_linen", "mlp", "tcresnet8"]
