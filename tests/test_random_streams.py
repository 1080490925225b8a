"""Streams of random keys are disjoint, and no draw depends on what is drawn beside it."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import optdyn
from optdyn.evaluation._evaluate import EVALUATION_STREAM
from optdyn.inner_loop import Objective, ProblemSet
from optdyn.inner_loop._problem_set import VALIDATION_STREAM
from optdyn.meta_training._trainer import TRAIN_STREAM
from optdyn.random_streams import keys_at, stream
from optdyn.search._random_search import RESCORING_STREAM, TUNING_STREAM
from optdyn.tasks import make_task, sample_batch

SOURCES = sorted(Path(optdyn.__file__).parent.rglob("*.py"))


def require_torch_alone(name: str) -> None:
    assert name == "optdyn.torch", name


def stream_names() -> dict[str, str]:
    """Every constant of the package that names a stream, and its value."""
    found = {}
    for module in pkgutil.walk_packages(optdyn.__path__, "optdyn.", onerror=require_torch_alone):
        if module.name.startswith("optdyn.torch"):  # needs PyTorch, and makes no key
            continue
        source = importlib.import_module(module.name)
        for name in re.findall(r"^(\w+_STREAM) = ", Path(source.__file__ or "").read_text(), re.M):
            found[f"{module.name}.{name}"] = getattr(source, name)
    return found


def bits(keys: jax.Array) -> set[tuple[int, ...]]:
    return {tuple(key) for key in np.reshape(jax.random.key_data(keys), (-1, 2)).tolist()}


def test_every_stream_has_a_name_and_keys_of_its_own() -> None:
    names = stream_names()
    assert len(names) >= 8
    assert len(set(names.values())) == len(names)
    keys = [
        bits(keys_at(stream(seed, name), jnp.arange(256)))
        for name in names.values()
        for seed in (0, 1, 2**32 - 1)
    ]
    for a, b in itertools.combinations(keys, 2):
        assert not a & b


def test_keys_come_from_streams_alone() -> None:
    """No other place makes a key from a seed; documentation and shape inference aside."""
    made = [
        line.strip()
        for path in SOURCES
        for line in path.read_text().splitlines()
        if re.search(r"random\.(key|PRNGKey)\(", line) and not re.match(r"\s*>>>", line)
    ]
    assert [line for line in made if "eval_shape" not in line] == [
        "return derived(jax.random.key(seed), name)"
    ]


def test_training_tuning_and_test_problems_differ() -> None:
    """The problems themselves, as each part of the protocol draws them."""
    task, root = make_task("rosenbrock"), stream(0, TRAIN_STREAM)
    steps = [jax.random.fold_in(root, step) for step in range(20)]
    keys = [keys_at(step, jnp.arange(32)) for step in steps]
    others = (TUNING_STREAM, RESCORING_STREAM, EVALUATION_STREAM, VALIDATION_STREAM)
    keys += [keys_at(stream(0, name), jnp.arange(256)) for name in others]
    starts = np.concatenate([sample_batch(task, some).params for some in keys])
    assert len(np.unique(starts, axis=0)) == len(starts) == 20 * 32 + 4 * 256


def test_a_key_does_not_depend_on_how_many_are_drawn_with_it() -> None:
    root = stream(3, "any")
    many = jax.random.key_data(keys_at(root, jnp.arange(64)))
    for chosen in ([5], [5, 6, 7], [63, 5]):
        some = jax.random.key_data(keys_at(root, jnp.array(chosen)))
        np.testing.assert_array_equal(some, many[np.array(chosen)])


def test_validation_uses_its_own_problems() -> None:
    task = make_task("rosenbrock")
    found = ProblemSet(task, 0, 4, Objective(1), VALIDATION_STREAM).problems
    expected = sample_batch(task, keys_at(stream(0, VALIDATION_STREAM), jnp.arange(4)))
    np.testing.assert_array_equal(found.params, expected.params)
