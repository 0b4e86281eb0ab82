"""Leaves of a tree of parameters by dotted name, such as `encoder.layers.0.kernel`, and by patterns of such names."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
from jax.tree_util import KeyPath, keystr
from jaxtyping import PyTree

from metajax.errors import InputError


def dotted(path: KeyPath) -> str:
    """The name of a leaf, whatever its containers: `norm0.scale`."""
    return keystr(path, simple=True, separator=".")


def named(tree: PyTree) -> dict[str, Any]:
    """All leaves by name, in the order of the tree."""
    return {dotted(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def match(tree: PyTree, patterns: Sequence[str]) -> dict[str, Any]:
    """The leaves whose name matches one of `patterns`.

    Args:
      tree: parameters, containers of any kind and depth.
      patterns: names with wildcards `*`, `?`, `[...]`, which cross dots; a pattern that names a layer stands for all
        within it: `head` for `head.kernel` and `head.bias`.

    Returns:
      The leaves by name, in the order of the tree.

    Raises:
      InputError: a pattern matches no name.

    Example:
      >>> list(match({"body": {"kernel": 1, "bias": 2}, "head": {"bias": 3}}, ["*.bias"]))
      ['body.bias', 'head.bias']
    """
    leaves = named(tree)
    chosen = set()
    for pattern in patterns:
        found = {name for name in leaves if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
        if not found:
            raise InputError(f"The pattern {pattern!r} matches no parameter; the parameters are {_told(leaves)}.")
        chosen |= found
    return {name: leaf for name, leaf in leaves.items() if name in chosen}


def renewed(tree: PyTree, change: Callable[[str, Any], Any]) -> PyTree:
    """The tree with `change(name, leaf)` in place of every leaf."""
    return jax.tree.map_with_path(lambda path, leaf: change(dotted(path), leaf), tree)


def changed(tree: PyTree, others: dict[str, Any], change: Callable[[Any, Any], Any]) -> PyTree:
    """The tree with `change(leaf, others[name])` in place of those of its leaves that `others` names."""
    return renewed(tree, lambda name, leaf: change(leaf, others[name]) if name in others else leaf)


def replaced(tree: PyTree, leaves: dict[str, Any]) -> PyTree:
    """The tree with those of its leaves that `leaves` names replaced; an `InputError` where it lacks one."""
    names = named(tree)
    if odd := [name for name in leaves if name not in names]:
        raise InputError(f"There is no parameter {odd[0]!r} to replace; the parameters are {_told(names)}.")
    return renewed(tree, lambda name, leaf: leaves.get(name, leaf))


def merged(tree: PyTree, leaves: dict[str, Any]) -> PyTree:
    """Nested dicts with further leaves by dotted name, beside or in place of those that are there."""
    tree = dict(tree)
    for name, leaf in leaves.items():
        first, _, rest = name.partition(".")
        tree[first] = merged(tree.get(first, {}), {rest: leaf}) if rest else leaf
    return tree


def _told(names: Sequence[str] | dict[str, Any], most: int = 40) -> str:
    """Names for a message, not all of a thousand."""
    shown = list(names)[:most]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")
