"""metajax: functional meta-learning for speech recognition in JAX."""

from metajax.algorithms.anil import anil
from metajax.algorithms.baselinepp import baselinepp
from metajax.algorithms.boil import boil
from metajax.algorithms.cavia import cavia
from metajax.algorithms.fomaml import fomaml
from metajax.algorithms.hypernetwork import hypernetwork
from metajax.algorithms.imaml import imaml
from metajax.algorithms.in_context import in_context
from metajax.algorithms.joint import joint
from metajax.algorithms.logistic import logistic
from metajax.algorithms.maml import maml
from metajax.algorithms.mamlpp import mamlpp
from metajax.algorithms.matching import matching
from metajax.algorithms.meta_curvature import meta_curvature
from metajax.algorithms.meta_sgd import meta_sgd
from metajax.algorithms.multi_step import multi_step_loss, multi_step_phases, multi_step_weights
from metajax.algorithms.proto_maml import proto_maml
from metajax.algorithms.protonet import protonet
from metajax.algorithms.relation import relation
from metajax.algorithms.reptile import reptile
from metajax.algorithms.ridge import ridge
from metajax.algorithms.simpleshot import simpleshot
from metajax.algorithms.task_encoder import task_encoder
from metajax.algorithms.tnet import tnet
from metajax.core import Algorithm, Batch, Episode, Labels, Learner, Referenced, adapt, ascribe, mix, query_loss
from metajax.errors import InputError
from metajax.evaluate import evaluate, mean_ci95
from metajax.inner import Fast, closed_form, descent
from metajax.train import DivergedError, Fit, MetaState, fit, in_phases, init_state, meta_step

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
    "anil",
    "ascribe",
    "baselinepp",
    "boil",
    "cavia",
    "closed_form",
    "descent",
    "evaluate",
    "fit",
    "fomaml",
    "hypernetwork",
    "imaml",
    "in_context",
    "in_phases",
    "init_state",
    "joint",
    "logistic",
    "maml",
    "mamlpp",
    "matching",
    "mean_ci95",
    "meta_curvature",
    "meta_sgd",
    "meta_step",
    "mix",
    "multi_step_loss",
    "multi_step_phases",
    "multi_step_weights",
    "proto_maml",
    "protonet",
    "query_loss",
    "relation",
    "reptile",
    "ridge",
    "simpleshot",
    "task_encoder",
    "tnet",
]
