"""Beyond the paper: a pretrained sentence encoder, gated, distilled from itself, compacted."""

from experiments.common.experiment import Experiment
from experiments.minilm_encoder.judge import plots, summarise, tables, verdicts
from experiments.minilm_encoder.measure import Configuration, cells, measure

SMOKE = Configuration(tiny=True, methods=("D = 3",), lams=(1e-3,), ratios=(0.5,), steps=40, batch=16, repeats=1)
CPU = Configuration(methods=("D = 3",), steps=300, batch=24, length=32)

EXPERIMENT = Experiment(
    name="minilm_encoder",
    title="Beyond the paper: heads and neurons of a pretrained sentence encoder",
    configurations={"smoke": SMOKE, "cpu": CPU, "gpu": Configuration(steps=3000, batch=64), "paper": Configuration()},
    cells=cells,
    measure=measure,
    summarise=summarise,
    verdicts=verdicts,
    tables=tables,
    plots=plots,
    datasets=lambda c: () if c.tiny else (c.text,),
)
