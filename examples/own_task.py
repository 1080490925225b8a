"""A task of one's own: meta-train an optimizer on it, find its modes, draw both."""

import sys

import jax
import jax.numpy as jnp

import optdyn
from optdyn import evaluation, figures, search
from optdyn.optimizers._baselines import BASELINES


class Classification:
    def sample(self, key):  # logistic regression on 64 noisy points, features of unlike scales
        keys = jax.random.split(key, 3)
        x = jax.random.normal(keys[0], (64, 6))
        y = jnp.sign(x.sum(axis=1) + 2.0 * jax.random.normal(keys[1], (64,)))
        x *= 10.0 ** jax.random.uniform(keys[2], (6,), minval=-1.0)
        return optdyn.Problem({"w": jnp.zeros(6), "b": jnp.zeros(())}, self.loss, (x, y))

    def loss(self, params, x, y):
        return jnp.mean(jax.nn.softplus(-y * (x @ params["w"] + params["b"])))


meta_steps, combinations = map(int, sys.argv[1:] or (1000, 300))
task = Classification()
how = optdyn.MetaTraining(meta_steps, learning_rate=1e-2, max_cotangent_norm=1.0)
net = optdyn.Architecture(units=16, encoding=optdyn.Encoding("asinh", gain=10.0), output_scale=0.1)
start = optdyn.ComponentwiseRNN.init(jax.random.key(0), net)
rnn = optdyn.meta_train(task, start, how, seed=0)
how_long = search.SearchProtocol(num_samples=combinations)
table = optdyn.random_search(BASELINES["momentum"], task, seed=0, protocol=how_long)
best = figures.MomentumPoint(**search.best(table).hyperparameters)
rivals = {"learned": rnn.as_optax(), "momentum": BASELINES["momentum"].factory(**vars(best))}
runs = {name: optdyn.evaluate(tx, task, seed=0).losses for name, tx in rivals.items()}
curves = {name: evaluation.mean_curve(losses) for name, losses in runs.items()}
figures.loss_curves(curves).savefig("losses.png")
modes = optdyn.eigenmodes(optdyn.linearize(rnn, state=optdyn.settle(rnn, 0.0)))
figures.momentum_hyperparameters(modes.beta, modes.alpha, best, None).savefig("modes.png")
