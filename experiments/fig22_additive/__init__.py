"""Fig. 22: sparse neural additive models, one gated group for each column."""

from experiments.common.experiment import Experiment
from experiments.fig22_additive.judge import plots, summarise, tables, verdicts
from experiments.fig22_additive.measure import Configuration, cells, measure

SMOKE = Configuration(
    rows=200, columns=6, folds=2, depths=(2, 3), direct=("SNAM",), plain=("D = 3",), hidden=(8,), epochs=20,
    lr=0.01, lams=2, lam_low=0.1, lam_high=10.0,
)  # fmt: skip
CPU = Configuration(hidden=(32, 32, 16), epochs=150)

EXPERIMENT = Experiment(
    name="fig22_additive",
    title="Fig. 22: sparse neural additive models",
    configurations={"smoke": SMOKE, "cpu": CPU, "paper": Configuration()},
    cells=cells,
    measure=measure,
    summarise=summarise,
    verdicts=verdicts,
    tables=tables,
    plots=plots,
)
