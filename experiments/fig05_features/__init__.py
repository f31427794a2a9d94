"""Fig. 5 and 15 (left): features of six data sets, selected by gates, by LassoNet, by HSIC-Lasso."""

from experiments.common.experiment import Experiment
from experiments.fig05_features.judge import plots, summarise, tables, verdicts
from experiments.fig05_features.measure import DATASETS, Configuration, cells, measure

SMOKE = Configuration(
    datasets=("digits",), seeds=(0,), depths=(2, 3), deep=(), hidden=(30, 10), epochs=8, batch=64, runs=3, ks=(10, 25),
    path=False, peers=(), trials=(("digits", "D = 3, refit"), ("digits", "D = 2, 12 epochs")),
)  # fmt: skip
CPU = Configuration(
    trials=(
        ("coil20", "D = 3, refit"), ("coil20", "D = 3, 400 epochs"), ("coil20", "D = 4, 400 epochs"),
        ("coil20", "HSIC-Lasso, 400 epochs"),
    )
)  # fmt: skip
PAPER = Configuration(datasets=(*DATASETS[:2], "har", *DATASETS[3:]), runs=20, rows=None, lassonet={})

EXPERIMENT = Experiment(
    name="fig05_features",
    title="Fig. 5, 15: selecting features of six data sets",
    configurations={"smoke": SMOKE, "cpu": CPU, "paper": PAPER},
    cells=cells,
    measure=measure,
    summarise=summarise,
    verdicts=verdicts,
    tables=tables,
    plots=plots,
    datasets=lambda c: c.datasets,
)
