"""Errors, plain functions `(outputs, y) -> (scalar, metrics)`, and the losses of several tasks and their weightings."""

from metajax.losses.classify import classify, classify_corpus
from metajax.losses.ctc import ctc
from metajax.losses.multitask import multitask_error, multitask_losses
from metajax.losses.regress import squared_error
from metajax.losses.selftrain import Judged, entropy, of_logits, pseudo, pseudo_labels, suta, verdict
