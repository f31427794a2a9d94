"""Fig. 20: selection of modalities in a late fusion of pictures and a table."""

from experiments.common.experiment import Experiment
from experiments.fig20_modalities.judge import plots, summarise, tables, verdicts
from experiments.fig20_modalities.measure import Configuration, cells, measure

SMOKE = Configuration(
    dataset="digits", alphas=(0.0, 0.5), depths=(2, 3), splits=(0,), rows=160, validation_rows=80, test_rows=80,
    channels=(4, 4), hidden=16, width=8, warm_epochs=6, epochs=3, lr=0.02, lams=3, lam_low=0.02,
)  # fmt: skip
CPU = Configuration(
    pool=2, channels=(8, 16), warm_epochs=12, warm_lr=0.01, epochs=24, lr=0.03, lams=7, lam_low=0.02
)  # fmt: skip

EXPERIMENT = Experiment(
    name="fig20_modalities",
    title="Fig. 20: selection of modalities in a late fusion",
    configurations={"smoke": SMOKE, "cpu": CPU, "paper": Configuration()},
    cells=cells,
    measure=measure,
    summarise=summarise,
    verdicts=verdicts,
    tables=tables,
    plots=plots,
    datasets=lambda c: (c.dataset,),
)
