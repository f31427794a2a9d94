"""Fig. 8 and 10: neural oblivious trees on the white wine table, gated tree by tree."""

from experiments.common.experiment import Experiment
from experiments.fig08_trees.judge import plots, summarise, tables, verdicts
from experiments.fig08_trees.measure import Configuration, cells, measure

SMOKE = Configuration(
    dataset="diabetes", splits=(0,), trees=12, tree_depth=3, epochs=6, batch=128, claim=0.1, lams=(0.1,), deep=(3,),
    deep_lams=(0.1,), others=((12, 1.0),), every=2,
)  # fmt: skip
CPU = Configuration(
    trees=100, scale=0.45, lams=(1e-3, 3e-3, 1e-2), deep_lams=(3e-3,), others=((500, 0.2), (100, 0.01), (100, 1.0)),
)  # fmt: skip

EXPERIMENT = Experiment(
    name="fig08_trees",
    title="Fig. 8, 10: neural trees on white wine",
    configurations={"smoke": SMOKE, "cpu": CPU, "paper": Configuration()},
    cells=cells,
    measure=measure,
    summarise=summarise,
    verdicts=verdicts,
    tables=tables,
    plots=plots,
    datasets=lambda c: (c.dataset,),
)
