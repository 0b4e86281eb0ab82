"""Models: pure functions on parameters."""

from metajax.models import pretrained
from metajax.models.beside import beside
from metajax.models.bilstm import bilstm
from metajax.models.conformer import conformer
from metajax.models.conv4 import conv4
from metajax.models.crnn import crnn
from metajax.models.fusion import fusion
from metajax.models.image import image_encoder
from metajax.models.judged import judged
from metajax.models.layers import NORMALIZATIONS, Normalization
from metajax.models.mlp import mlp
from metajax.models.model import Model, from_linen, identity, in_bfloat16
from metajax.models.multitask import Multitask, embedding_heads, multitask
from metajax.models.named import Network, Precision, Recogniser, network, recogniser
from metajax.models.tcresnet import tcresnet8
from metajax.models.whitened import whitened, whitening
from metajax.models.words import Trained, words
