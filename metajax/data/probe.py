"""A linear probe: what a classifier without any learning of features tells from them."""

import numpy as np
from jaxtyping import Float, Int

from metajax.tasks.splits import Splits


def linear_probe(x: Float[np.ndarray, "n ..."], y: Int[np.ndarray, " n"], splits: Splits) -> dict[str, float]:
    """What a linear classifier tells from features: logistic regression, its strength chosen on validation.

    Args:
      x: features, each standardised by the training examples; needs scikit-learn.
      y: classes.
      splits: of the examples.

    Returns:
      Accuracies by name: `validation` and `test`.
    """
    from sklearn.linear_model import LogisticRegression

    x = x.reshape(len(x), -1).astype(np.float64)
    x = (x - x[splits.train].mean(0)) / (x[splits.train].std(0) + 1e-6)
    fits = [LogisticRegression(C=c, max_iter=1000).fit(x[splits.train], y[splits.train]) for c in (0.01, 0.1, 1.0)]
    best = max(fits, key=lambda fit: fit.score(x[splits.validation], y[splits.validation]))
    return {part: float(best.score(x[mask], y[mask])) for part, mask in splits._asdict().items() if part != "train"}
