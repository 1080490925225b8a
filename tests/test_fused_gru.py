"""The native GRU step against the plain one: values, gradients, layouts, threads, fallbacks."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helpers
from optdyn.meta_training import UnrollOptions, meta_value_and_grad
from optdyn.optimizers import Architecture, ComponentwiseRNN, Encoding
from optdyn.optimizers import _fused_gru as fused_gru
from optdyn.optimizers._cells import GRU, step_and_readout
from optdyn.optimizers._gru_kernel import gru_reference
from optdyn.optimizers.native import build


def as_reference(weights, w):
    def step(h, u):
        following = gru_reference("before", weights, h, u)
        return following, following @ w

    return step


def pulled_back(bind, weights, w, h, u):
    """A scalar of the step's two results, and its gradient with respect to everything."""

    def scalar(weights, w, h, u):
        following, readout = bind(weights, w)(h, u)
        profile = jnp.arange(1.0, following.shape[-1] + 1, dtype=h.dtype) / following.shape[-1]
        return jnp.sum(jnp.sin(3 * following) @ profile) + jnp.sum(readout**2)

    return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1, 2, 3)))(weights, w, h, u)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))  # one program, not one an operation
def example(units, rows, inputs=2):
    kind = "log_sign" if inputs == 2 else "asinh"
    architecture = Architecture("gru", units, Encoding(kind))
    rnn = ComponentwiseRNN.init(jax.random.key(0), architecture)
    w, h, u = (
        0.5 * jax.random.normal(key, shape, rnn.w.dtype)
        for key, shape in zip(
            jax.random.split(jax.random.key(1), 3),
            [(units,), (rows, units), (rows, inputs)],
            strict=True,
        )
    )
    return rnn.weights, w, h, u


def bind(weights, w):
    return step_and_readout(GRU(w.shape[0]), weights, w)


def assert_close(ours, reference, tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        scale = float(np.max(np.abs(b)))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


def test_there_is_native_code_where_there_is_a_compiler():
    compiler = shutil.which("g++") or shutil.which("clang++")
    assert fused_gru.usable(32, jnp.float32) == (compiler is not None)
    assert not fused_gru.usable(8, jnp.float32)
    assert not fused_gru.usable(32, jnp.bfloat16)


SIZES = [(32, 80, 1), (24, 77, 2), (16, 8, 1), (40, 13, 2), (72, 30, 1), (32, 2500, 2)]


@pytest.mark.parametrize(("units", "rows", "inputs"), helpers.small_part(SIZES[1::4], SIZES))
@pytest.mark.usefixtures("x64")
def test_native_step_is_the_plain_step_in_float64(units, rows, inputs):
    weights, w, h, u = example(units, rows, inputs)
    ours, reference = (pulled_back(each, weights, w, h, u) for each in (bind, as_reference))
    assert_close(ours, reference, 1e-12)


@pytest.mark.parametrize(("units", "rows", "inputs"), helpers.small_part(SIZES[:3:2], SIZES))
def test_native_step_is_the_plain_step_in_float32(units, rows, inputs):
    weights, w, h, u = example(units, rows, inputs)
    ours, reference = (pulled_back(each, weights, w, h, u) for each in (bind, as_reference))
    assert_close(ours, reference, 1e-5)


def test_gates_computed_again_are_the_gates_kept(monkeypatch):
    arguments = example(32, 40)
    kept = pulled_back(bind, *arguments)
    monkeypatch.setattr(fused_gru, "KEPT_BYTES", 0)
    again = pulled_back(bind, *arguments)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_blocks_of_rows_add_up_whatever_the_number_of_threads(monkeypatch):
    arguments = example(32, 2500)
    results = []
    for threads in (1, 2, 3, 3):
        monkeypatch.setattr(fused_gru, "_threads", lambda threads=threads: threads)
        results.append(pulled_back(bind, *arguments))
    assert_close(results[1], results[0], 1e-5)
    assert_close(results[2], results[0], 1e-5)
    for a, b in zip(jax.tree.leaves(results[2]), jax.tree.leaves(results[3]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("x64")
def test_inside_vmap_the_plain_step_takes_over():
    weights, w, h, u = example(16, 10)
    hs, us = jnp.stack([h, 0.5 * h, -h]), jnp.stack([u, u, 2 * u])
    step = bind(weights, w)

    def loss(h, u):
        following, readout = step(h, u)
        return jnp.sum(following**3) + jnp.sum(readout**2)

    of_one = jax.value_and_grad(loss, argnums=(0, 1))
    together, each = jax.jit(jax.vmap(of_one))(hs, us), jax.jit(of_one)
    for i in range(3):
        alone = each(hs[i], us[i])
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, 1e-12)


@pytest.mark.parametrize(
    ("cell", "segment"),
    helpers.small_part(
        [("gru", 3), ("gru_reset_after", None)],
        itertools.product(("gru", "gru_reset_after"), (None, 3)),
    ),
)
@pytest.mark.usefixtures("x64")
def test_the_meta_gradient_is_the_same_without_native_code(monkeypatch, cell, segment):
    rnn = helpers.random_rnn(cell, units=16, encoding=Encoding("asinh", 2.0))
    task = helpers.small_task("linear_regression")
    options = UnrollOptions(num_steps=8, segment=segment)
    gradient = functools.partial(
        meta_value_and_grad, rnn, task, jax.random.key(0), batch_size=4, options=options
    )
    native = jax.jit(gradient)()
    monkeypatch.setattr(fused_gru, "targets", lambda: None)
    plain = jax.jit(lambda: gradient())()
    assert_close(native[:2], plain[:2], 1e-10)


def test_a_compiler_that_fails_leaves_the_plain_step_and_says_so(monkeypatch, tmp_path, caplog):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'gru.cc:1: error: nothing works' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.targets.cache_clear()
    try:
        assert build.targets() is None
    finally:
        build.targets.cache_clear()
    assert "plain JAX step" in caplog.text
    assert not list(tmp_path.glob("**/*.so"))


def test_native_code_can_be_switched_off(monkeypatch):
    monkeypatch.setenv(build.SWITCH, "off")
    build.targets.cache_clear()
    try:
        assert build.targets() is None
    finally:
        build.targets.cache_clear()


def test_asinh_of_any_size_has_the_derivative_of_asinh():
    encoding = Encoding("asinh", gain=1000.0)
    g = jnp.array([0.0, 1e-9, -1e-3, 0.3, -7.0, 1e6, -1e12])
    expected = np.arcsinh(1000.0 * np.asarray(g, np.float64))
    np.testing.assert_allclose(encoding(g)[:, 0], expected, rtol=1e-6)
    slope = jax.vmap(jax.grad(lambda x: dataclasses.replace(encoding)(x[None])[0, 0]))(g)
    truth = 1000.0 / np.sqrt(1.0 + (1000.0 * np.asarray(g, np.float64)) ** 2)
    np.testing.assert_allclose(slope, truth, rtol=1e-5)


def test_a_damaged_library_is_not_loaded(tmp_path):
    library = tmp_path / "gru.so"
    assert not build._is_intact(library)
    whole = b"code" + hashlib.sha256(b"code").digest()
    for content, intact in [
        (whole, True), (b"", False), (b"code", False), (whole[:-1], False), (whole + b"x", False),
        (b"cpde" + whole[4:], False), (bytes(len(whole)), False),
    ]:  # fmt: skip
        library.write_bytes(content)
        assert build._is_intact(library) == intact


@pytest.mark.full
def test_a_library_is_signed_when_it_is_built(monkeypatch, tmp_path):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no compiler here")
    monkeypatch.setattr(build, "FLAGS", ("-std=c++17", "-O0", "-march=native"))
    library = tmp_path / "native" / "gru.so"
    build._build(compiler, library)
    assert build._is_intact(library)
    assert list(library.parent.iterdir()) == [library]
