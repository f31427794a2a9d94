"""Beyond the paper: a pretrained sentence encoder, gated, distilled from itself, compacted."""

from experiments.common.experiment import Experiment
from experiments.minilm_encoder.judge import plots, summarise, tables, verdicts
from experiments.minilm_encoder.measure import Configuration, cells, measure

SMOKE = Configuration(tiny=True, ratios=(0.5,), lrs=(1e-3,), steps=40, batch=16, repeats=1)
CPU = Configuration(steps=400, batch=24)

EXPERIMENT = Experiment(
    name="minilm_encoder",
    title="Beyond the paper: heads and neurons of a pretrained sentence encoder",
    configurations={"smoke": SMOKE, "cpu": CPU, "gpu": Configuration(), "paper": Configuration(seeds=(0, 1, 2))},
    cells=cells,
    measure=measure,
    summarise=summarise,
    verdicts=verdicts,
    tables=tables,
    plots=plots,
    datasets=lambda c: () if c.tiny else (c.text,),
)
