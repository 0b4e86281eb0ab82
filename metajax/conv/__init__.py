"""Convolution and pooling that stay fast under per-task weights, in every order of derivative."""

from metajax.conv.formulations import Formulation, formulation
from metajax.conv.pool import conv_max_pool, conv_moments, max_pool
from metajax.conv.primitives import conv
