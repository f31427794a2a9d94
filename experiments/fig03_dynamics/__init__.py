"""Fig. 3, 17 and 18: the gap between the gated and the non-smooth objective decays exponentially."""

from experiments.common.experiment import Experiment
from experiments.fig03_dynamics.judge import plots, summarise, tables, verdicts
from experiments.fig03_dynamics.measure import Configuration, cells, measure

SMOKE = Configuration(
    dataset="digits", hidden=(30, 10), seeds=(0,), depths=(2, 3), lams=(0.1,), batch=256, sgd_lr=0.1,
    larger_lrs=(0.2,), adam_steps=200, looks=20,
)  # fmt: skip
PAPER = Configuration(lams=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2), seeds=(0, 1, 2, 3, 4), adam_steps=20_000)

EXPERIMENT = Experiment(
    name="fig03_dynamics",
    title="Fig. 3, 17, 18: how fast the gated objective becomes the non-smooth one",
    configurations={"smoke": SMOKE, "cpu": Configuration(), "paper": PAPER},
    cells=cells,
    measure=measure,
    summarise=summarise,
    verdicts=verdicts,
    tables=tables,
    plots=plots,
    datasets=lambda c: (c.dataset,),
)
