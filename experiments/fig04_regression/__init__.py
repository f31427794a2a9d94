"""Fig. 4 and 16: group-sparse linear regression, gated descent beside the group lasso."""

from experiments.common.experiment import Experiment
from experiments.fig04_regression.judge import plots, summarise, tables, verdicts
from experiments.fig04_regression.measure import Configuration, cells, measure

SMOKE = Configuration(
    seeds=(0,), rows=100, test_rows=200, groups=10, informative=3, steps=150, lams=4, lam_low=0.05, lam_high=2.0,
    ablation=(), losses=("half",),
)  # fmt: skip

EXPERIMENT = Experiment(
    name="fig04_regression",
    title="Fig. 4, 16: group-sparse regression beside the group lasso",
    configurations={"smoke": SMOKE, "cpu": Configuration(), "paper": Configuration()},
    cells=cells,
    measure=measure,
    summarise=summarise,
    verdicts=verdicts,
    tables=tables,
    plots=plots,
)
