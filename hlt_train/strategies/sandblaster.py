"""Sandblaster L-BFGS (Dean et al. 2012, "Large scale distributed deep networks", section 4.2 and algorithm 1.2 of the appendix).

A round is one evaluation of the loss and its gradient over the whole epoch, at one point x. The epoch is cut into portions; a worker gets one, evaluates it,
sends loss and gradient, and gets the next. Near the end of a round the portions still out are handed out a second time and the first result counts; when
copies of all are out, a free worker idles (portion -1). When the last portion is in, the coordinator alone takes one step of a line search or of L-BFGS.

The vectors never move: parameters, direction and history stay on the shards, and every shard does the same sums on its slice. What crosses the shards is the
Gram matrix of the history (s_1..s_m, y_1..y_m), the gradient and the direction, (2m+1)(2m+2) numbers per round; the two-loop recursion then runs on
coefficients of those vectors (Chen, Wang, Zhou 2014, "Large-scale L-BFGS using MapReduce").

The gradient of a round is summed exactly (`_exact.py`), so that neither the order in which portions come, nor the number of workers, nor copies or deaths
change one bit of the result. The number of shards and the size of the portions change its rounding.

Deviations. The paper leaves the line search open: here it is for the strong Wolfe conditions, which keep every pair (s, y) good. A worker sends each portion
by itself, where the paper gathers several; and gets the parameters with each portion, where the paper has it fetch them once per round. Consecutive portions
go to whoever is free. The loss must not be random from one evaluation of a portion to the next. The optimiser and the rate of the run are not used.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from hlt_train.errors import UsageError
from hlt_train.strategies import Answers, Array, Bool, Grads, In, Info, Key, Out, Params, S, Scalar, Setup, Strategy, W, _exact, _line_search
from hlt_train.strategies._exact import Sum
from hlt_train.strategies._flat import like, ravel
from hlt_train.strategies._line_search import Search

__all__ = ["sandblaster"]

PATIENCE = 16  # idle answers per worker, nothing new between them, after which one more copy of a portion may go out: its holders may be dead
PARALLEL = 1e-7  # s.y / (|s| |y|) of a pair, below which rounding decides the sign of s.y: the pair is not used


class Worker(NamedTuple):
    """params: the point of the round; number: int32, portion + portions * round, -1 none; loss, grads: of the last portion evaluated."""

    params: Params
    number: Array
    loss: Array
    grads: Grads


class Server(NamedTuple):
    """A shard's slice [n] of every vector, and the coordinator's scalars, which are the same on every shard.

    Attributes:
        base: the last point that was accepted. trial: the point of this round. direction: from base, of this line search.
        basis: [2m+1, n], rows s (m of them), y (m), and the gradient at base.
        accepted: int32, points accepted so far. square: gradient . gradient at base, over all shards.
        search: the line search.
        gradient, loss: sums over the portions that are in.
        got: bool [portions]. given: int32 [portions], copies handed out in this round.
        copies: int32, how many may go out. idle: int32, idle answers since something new came in.
        round: int32.
    """

    base: Array
    trial: Array
    direction: Array
    basis: Array
    accepted: Array
    square: Array
    search: Search
    gradient: Sum
    loss: Sum
    got: Array
    given: Array
    copies: Array
    idle: Array
    round: Array


def sandblaster(setup: Setup, *, m: int = 10, first: float = 1.0, c1: float = 1e-4, c2: float = 0.9, copies: int = 2) -> Strategy:
    """L-BFGS over whole epochs, whose vectors stay on the server shards and whose portions go to whoever is free.

    Args:
        setup: the run; its portions are those of a round.
        m: pairs (s, y) of the history.
        first: length of the first step, |x_1 - x_0|, that the line search tries.
        c1: sufficient decrease of the line search.
        c2: how much smaller the slope must become.
        copies: how often a portion may be handed out in a round.
    """
    portions = setup.portions
    if m < 1:
        raise UsageError(f"sandblaster: a history of m={m} pairs", then="m of at least 1")
    if not first > 0:
        raise UsageError(f"sandblaster: a first step of length {first}", then="first above 0")
    if not 0 < c1 < c2 < 1:
        raise UsageError(f"sandblaster: c1={c1} and c2={c2} describe no line search", then="0 < c1 < c2 < 1")
    if copies < 1:
        raise UsageError(f"sandblaster: {copies} copies of a portion", then="copies of at least 1")
    if not 1 <= portions <= _exact.MOST:
        raise UsageError(f"sandblaster: an epoch of {portions} portions; the exact sum takes 1 to {_exact.MOST}", then="a larger batch")

    def init_worker(params: Params, _info: Info) -> Worker:
        return Worker(params, jnp.full((), -1, jnp.int32), jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))

    def step(w: Worker, loss: Scalar, grads: Grads) -> Worker:
        return w._replace(loss=loss, grads=grads)

    def ask(w: Worker, _key: Key) -> tuple[Worker, Out]:
        return w, Out((w.number, w.loss, ravel(w.grads)), push=w.number >= 0, fetch=True)

    def take(w: Worker, answer: Answers, _message: In) -> Worker:
        trial, number = answer
        return w._replace(params=like(w.params, trial), number=number)

    def init_server(params: Params, _info: Info) -> Server:
        x = ravel(params)
        none, zero = jnp.zeros((), jnp.int32), jnp.zeros(())
        opened = (_exact.zero(x), _exact.zero(zero), jnp.zeros(portions, jnp.bool_), jnp.zeros(portions, jnp.int32), none + copies, none)
        s = Server(x, x, jnp.zeros_like(x), jnp.zeros((2 * m + 1, *x.shape)), none, zero, _line_search.start(0, 0, 0), *opened, round=none)
        apart: Server = jax.tree.map(jnp.copy, s)  # no two leaves share a buffer: a transport may donate them
        return apart

    def counted(s: Server, messages: In) -> tuple[Bool, Array]:
        """Whether the message's portion is new in this round, and the portions that are then in."""
        number = messages.body[0][0]
        portion = number % portions
        new = messages.push[0] & (number // portions == s.round) & ~s.got[portion]
        return new, s.got.at[portion].set(s.got[portion] | new)

    def measure(s: Server, messages: In) -> Array:
        _, got = counted(s, messages)
        return lax.cond(got.all(), lambda: _gram(_candidate(s, _exact.mean(_exact.added(s.gradient, messages.body[2][0]), portions)), s.direction), _no_gram)

    def _no_gram() -> Array:
        return jnp.zeros((2 * m + 1, 2 * m + 2))

    def serve(s: Server, messages: In, gram: Array) -> tuple[Server, Answers]:
        new, got = counted(s, messages)
        _, loss, gradient = messages.body
        grown = _exact.added(s.gradient, gradient[0]), _exact.added(s.loss, loss[0])
        sums = jax.tree.map(lambda a, b: jnp.where(new, a, b), grown, (s.gradient, s.loss))
        s = s._replace(gradient=sums[0], loss=sums[1], got=got, idle=jnp.where(new, 0, s.idle))
        s = lax.cond(got.all(), lambda s: close(s, gram), lambda s: s, s)
        s, number = hand_out(s)
        return s, (s.trial[None], number[None])

    def close(s: Server, gram: Array) -> Server:
        """All portions are in: the next point, and an open round."""
        loss = _exact.mean(s.loss, portions)
        accept, search = _line_search.judge(s.search, loss, gram[2 * m, 2 * m + 1], c1, c2)
        s = lax.cond(accept | (s.accepted == 0), lambda s: advance(s, loss, gram), lambda s: s._replace(search=search), s)
        s = lax.cond(s.search.lost | ~(s.search.origin.slope < 0), restart, lambda s: s, s)
        trial = s.base + s.search.t * s.direction
        empty = _exact.zero(s.base), _exact.zero(loss), jnp.zeros_like(s.got), jnp.zeros_like(s.given), jnp.full_like(s.copies, copies), jnp.zeros_like(s.idle)
        return Server(s.base, trial, s.direction, s.basis, s.accepted, s.square, s.search, *empty, round=s.round + 1)

    def advance(s: Server, loss: Array, gram: Array) -> Server:
        """The trial point becomes the base, with a new pair and a new direction from it."""
        basis = _candidate(s, _exact.mean(s.gradient, portions))
        coefficients, pairs = _two_loops(gram[:, :-1], (s.accepted - 1) % m)
        square = gram[2 * m, 2 * m]
        slope = jnp.dot(gram[2 * m, :-1], coefficients, precision="highest")
        search = _line_search.start(loss, slope, jnp.where(pairs, 1.0, _first(square)))
        direction = jnp.tensordot(coefficients, basis, axes=1, precision="highest")
        return s._replace(base=s.trial, direction=direction, basis=basis, accepted=s.accepted + 1, square=square, search=search)

    def restart(s: Server) -> Server:
        """Forget the history: down the gradient at the base."""
        gradient = s.basis[2 * m]
        basis = jnp.zeros_like(s.basis).at[2 * m].set(gradient)
        return s._replace(basis=basis, direction=-gradient, search=_line_search.start(s.search.origin.value, -s.square, _first(s.square)))

    def _first(square: Array) -> Array:
        return first / jnp.maximum(jnp.sqrt(square), 1e-30)

    def hand_out(s: Server) -> tuple[Server, Array]:
        """The portion that went out least often, the first of these; -1 where that has had its copies."""
        portion = jnp.argmin(jnp.where(s.got, 2**31 - 1, s.given))
        give = s.given[portion] < s.copies
        idle = jnp.where(give, s.idle, s.idle + 1)
        tired = idle >= PATIENCE * setup.workers
        s = s._replace(given=s.given.at[portion].add(give), idle=jnp.where(tired, 0, idle), copies=s.copies + tired)
        return s, jnp.where(give, portion.astype(jnp.int32) + portions * s.round, -1)

    def parameters(w: W, s: S) -> Params:
        return like(jax.tree.map(lambda leaf: leaf[0], w.params), s.base)

    return Strategy(
        init_worker=init_worker,
        point=lambda w: w.params,
        step=step,
        ask=ask,
        take=take,
        init_server=init_server,
        serve=serve,
        params=parameters,
        measure=measure,
        batch=lambda w: w.number,
        order="all",
    )


def _candidate(s: Server, gradient: Array) -> Array:
    """The basis if the trial point were accepted: its pair in the place of the oldest, its gradient last. The first point of a run makes a pair with s = 0."""
    m = s.basis.shape[0] // 2
    slot = (s.accepted - 1) % m
    return s.basis.at[slot].set(s.trial - s.base).at[m + slot].set(gradient - s.basis[2 * m]).at[2 * m].set(gradient)


def _gram(basis: Array, direction: Array) -> Array:
    """Dot products of the basis with itself and, in the last column, with the direction: [2m+1, 2m+2]."""
    return jnp.matmul(basis, jnp.concatenate([basis, direction[None]]).T, precision="highest")


def _two_loops(gram: Array, newest: Array) -> tuple[Array, Bool]:
    """The two-loop recursion (Nocedal and Wright, algorithm 7.4) on coefficients of the basis.

    Args:
        gram: [2m+1, 2m+1], dot products of s_1..s_m, y_1..y_m, gradient.
        newest: which pair is the newest; they get older in falling order, around.

    Returns the direction's coefficients [2m+1], and whether any pair was used.
    """
    m = gram.shape[0] // 2
    order = (newest - jnp.arange(m)) % m
    norms = jnp.sqrt(jnp.diagonal(gram))
    products = jnp.diagonal(gram[:m, m:])  # s.y
    good = products > PARALLEL * norms[:m] * norms[m : 2 * m]
    inverse = jnp.where(good, 1 / jnp.where(good, products, 1), 0)  # 0 leaves a pair out of both loops

    def backward(c: Array, j: Array) -> tuple[Array, Array]:
        alpha = inverse[j] * jnp.dot(gram[j], c, precision="highest")
        return c.at[m + j].add(-alpha), alpha

    def forward(c: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        j, alpha = pair
        return c.at[j].add(alpha - inverse[j] * jnp.dot(gram[m + j], c, precision="highest")), None

    c, alphas = lax.scan(backward, jnp.zeros(2 * m + 1).at[2 * m].set(1), order)
    latest = order[jnp.argmax(good[order])]
    scale = jnp.where(good.any(), products[latest] / norms[m + latest] ** 2, 1)
    c, _ = lax.scan(forward, c * scale, (order, alphas), reverse=True)
    return -c, good.any()
