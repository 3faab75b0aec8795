"""How many asynchronous workers each rule bears: loss at equal epochs against the number of workers, all with the learning rate that suits one worker.

Downpour and dynsgd have the same plain SGD and the same rate; AGN commits the mean of 5 steps of it; GEM imitates SGD with momentum .9 and gets a tenth of the
rate. No warm start, no Adagrad: the rules themselves. The table at a third of it says how much of a limit is the rate's.

Published (Hermans' thesis 2017): Downpour converges with 10 workers on MNIST and diverges with 20; AGN degrades from about 25. (Hermans, Louppe 2018): GEM is
stable with 100.
"""

from __future__ import annotations

import functools
import math

from _fleet import Bench, Clock, Timing, arguments, jets, shown, spread

from hlt_train.report.table import table
from hlt_train.strategies.agn import agn
from hlt_train.strategies.downpour import downpour
from hlt_train.strategies.dynsgd import dynsgd
from hlt_train.strategies.gem import gem
from hlt_train.transports.stragglers import factor

WORKERS, BATCH, EPOCHS = (1, 5, 10, 20, 40), 16, 2
RATES = {0.3: WORKERS, 0.1: (1, 10, 40)}
WORSE = 0.05  # above the loss of one worker: a rule is said to have degraded
RULES = {
    "downpour": (downpour, 1.0),
    "dynsgd": (dynsgd, 1.0),
    "agn, window 5": (functools.partial(agn, window=5), 1.0),
    "gem": (gem, 0.1),
    "gem, kappa 2": (functools.partial(gem, kappa=2.0), 0.1),
}


def main() -> None:
    given = arguments(__doc__, seeds=3).parse_args()
    clock, problem = Clock(), jets()
    seeds = range(1, 2 if given.quick else given.seeds + 1)
    rates, epochs = ({0.3: (1, 10)}, 1) if given.quick else (RATES, EPOCHS)
    batches = epochs * len(problem.x) // BATCH
    for rate, workers in rates.items():
        rows, degraded = [], dict.fromkeys(RULES, "none")
        alone: dict[str, float] = {}
        for n in workers:
            cells = [str(n)]
            for name, (rule, part) in RULES.items():
                of = Bench(problem, rule, workers=n, rate=rate * part, batch=BATCH)
                tracks = [of.run(seed, shares=batches, timing=Timing(factor=factor("lognormal:0.3", seed)), points=20) for seed in seeds]
                losses = [float(t.losses[-2:].mean()) if math.isfinite(t.loss) else math.inf for t in tracks]
                mean = spread(losses)[0]
                alone.setdefault(name, mean)
                if degraded[name] == "none" and not mean < alone[name] + WORSE:
                    degraded[name] = str(n)
                cells.append(shown(losses))
            rows.append(cells)
        rows.append(["degraded at", *degraded.values()])
        title = f"validation loss after {epochs} epochs ({batches:,} batches of {BATCH}), rate {rate:g} (GEM {rate / 10:g})"
        print(table(rows, ["workers", *RULES], title=title))
        print(f"degraded: {WORSE} above the rule's own loss with one worker\n")
    print("published: Downpour converges at 10 and diverges at 20 workers, AGN degrades from 25, GEM is stable at 100 (MNIST)")
    clock.close(len(seeds), quick=given.quick)


if __name__ == "__main__":
    main()
