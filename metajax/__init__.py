"""metajax: functional meta-learning for speech recognition in JAX."""

from metajax.algorithms.fomaml import fomaml
from metajax.algorithms.joint import joint
from metajax.algorithms.maml import maml
from metajax.algorithms.protonet import protonet
from metajax.core import Algorithm, Batch, Episode, Labels, Learner, Referenced, adapt, ascribe, mix, query_loss
from metajax.errors import InputError
from metajax.evaluate import evaluate, mean_ci95
from metajax.inner import Fast, closed_form, descent
from metajax.train import DivergedError, Fit, MetaState, fit, init_state, meta_step

__all__ = [
    "Algorithm",
    "Batch",
    "DivergedError",
    "Episode",
    "Fast",
    "Fit",
    "InputError",
    "Labels",
    "Learner",
    "MetaState",
    "Referenced",
    "adapt",
    "ascribe",
    "closed_form",
    "descent",
    "evaluate",
    "fit",
    "fomaml",
    "init_state",
    "joint",
    "maml",
    "mean_ci95",
    "meta_step",
    "mix",
    "protonet",
    "query_loss",
]
