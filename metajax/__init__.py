"""metajax: functional meta-learning for speech recognition in JAX."""

from metajax import losses
from metajax.algorithms.anil import anil
from metajax.algorithms.baselinepp import baselinepp
from metajax.algorithms.boil import boil
from metajax.algorithms.cavia import cavia
from metajax.algorithms.crossmodal import crossmodal
from metajax.algorithms.fomaml import fomaml
from metajax.algorithms.hypernetwork import hypernetwork
from metajax.algorithms.imaml import imaml
from metajax.algorithms.in_context import in_context
from metajax.algorithms.joint import joint
from metajax.algorithms.late_fusion import late_fusion
from metajax.algorithms.logistic import logistic
from metajax.algorithms.maml import maml
from metajax.algorithms.mamlpp import mamlpp
from metajax.algorithms.masked import masked_prediction
from metajax.algorithms.matching import matching
from metajax.algorithms.meta_curvature import meta_curvature
from metajax.algorithms.meta_sgd import meta_sgd
from metajax.algorithms.multi_step import multi_step_loss, multi_step_phases, multi_step_weights
from metajax.algorithms.open_set import open_set
from metajax.algorithms.parts import (
    adapters,
    context,
    everything,
    film,
    frozen,
    lhuc,
    lora,
    norms_by_step,
    nothing,
    only,
    warped,
    without,
)
from metajax.algorithms.proto_maml import proto_maml
from metajax.algorithms.protonet import protonet
from metajax.algorithms.relation import relation
from metajax.algorithms.reptile import reptile
from metajax.algorithms.ridge import ridge
from metajax.algorithms.rules import curvature, plain, rates, rates_by_step
from metajax.algorithms.simpleshot import simpleshot
from metajax.algorithms.task_encoder import task_encoder
from metajax.algorithms.tnet import tnet
from metajax.core import (
    Algorithm,
    Batch,
    Episode,
    Labels,
    Learner,
    Transcripts,
    Utterances,
    adapt,
    ascribe,
    held,
    mix,
    query_loss,
)
from metajax.errors import DivergedError, InputError
from metajax.evaluate import evaluate, mean_ci95
from metajax.inner import Fast, Part, Rule, by_support, cached, closed_form, descent, first_pass
from metajax.parallel import hoisted
from metajax.train import Fit, MetaState, fit, in_phases, init_state, meta_step, outer_step, trained
from metajax.weighted import weighted_step
