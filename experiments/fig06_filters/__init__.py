"""Fig. 6, 11, 12, 15 (right) and Table 1: filters of VGG-16 and ResNet-18, and how fast the compact networks are."""

from experiments.common.convnets import VGG16
from experiments.common.experiment import Experiment
from experiments.fig06_filters.judge import plots, summarise, tables, verdicts
from experiments.fig06_filters.measure import PAPER_TASKS, Configuration, Task, cells, measure

DEEP = ("filters, D = 6", "filters, D = 8")


def _grids(gates: tuple[float, ...], units: tuple[float, ...], direct: tuple[float, ...], slim: tuple[float, ...],
           peer: tuple[float, ...]) -> dict[str, tuple[float, ...]]:  # fmt: skip
    """A grid for each method: of gated filters, of gated units with norms, of the two penalties, of Torch-Pruning."""
    return {
        "filters, D = 2": gates, "filters, D = 3": gates, "filters, D = 4": gates, "coupled, D = 3": units,
        "coupled, D = 4": units, "norms, D = 3": units, "coupled, anchored D = 3": gates, "filters, direct": direct,
        "coupled, direct": direct, "scales, direct": slim, "torch-pruning": peer, **dict.fromkeys(DEEP, gates),
    }  # fmt: skip


SMOKE = Configuration(
    tasks=(Task("VGG, digits", "digits", ((4,), (8,)), hidden=16, lr=0.05, held_out=300),),
    grids=dict.fromkeys(("filters, D = 3", "coupled, D = 3", "coupled, anchored D = 3", "scales, direct"), (0.05,)),
    epochs=2, augment=False, ratios=(0.5,), latency_batch=8, repeats=1,
)  # fmt: skip
RESNET = ("coupled, D = 3", "filters, D = 3", "norms, D = 3", "coupled, direct", "scales, direct", "torch-pruning")
CPU = Configuration(
    tasks=(
        Task("VGG, Fashion-MNIST", "fashion_mnist", ((32, 32), (64, 64), (128, 128)), hidden=128, rows=8000, pool=2),
        Task("ResNet-18, CIFAR-10", "cifar10_30k", widths=(8, 16, 32, 64), rows=8000, pool=2, methods=RESNET,
             seeds=(0,)),
    ),
    grids=_grids((2e-2, 4e-2, 7e-2, 0.12), (5e-3, 1e-2, 2e-2, 3e-2), (5e-3, 1e-2, 2e-2, 4e-2), (3e-3, 1e-2, 2e-2, 4e-2),
                 (1e-3, 3e-3, 5e-3, 1e-2)) | {"coupled, anchored D = 3": (0.1, 0.2, 0.4, 0.8)},
    seeds=(0, 1, 2), deep=DEEP, epochs=20, augment=False, ratios=(0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95), repeats=10,
)  # fmt: skip
GPU_LR = ((2, 0.3), (3, 0.4), (4, 0.4))
GPU = Configuration(
    tasks=(Task("VGG-16, CIFAR-10 of 30,000", "cifar10_30k", VGG16, gated_lr=GPU_LR),),
    grids={
        "filters, D = 3": (5e-4, 1e-3, 2e-3), "coupled, D = 3": (2e-4, 5e-4, 1e-3),
        "filters, direct": (5e-5, 2e-4, 5e-4), "scales, direct": (5e-5, 2e-4, 5e-4),
    },
    epochs=40, bfloat16=True, ratios=(0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
)  # fmt: skip
WIDE = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
PAPER = Configuration(tasks=PAPER_TASKS, grids=_grids(WIDE, WIDE, WIDE, WIDE, WIDE), seeds=(0, 1, 2), deep=DEEP)

EXPERIMENT = Experiment(
    name="fig06_filters",
    title="Fig. 6, 11, 12, 15, Table 1: convolutional filters",
    configurations={"smoke": SMOKE, "cpu": CPU, "gpu": GPU, "paper": PAPER},
    cells=cells,
    measure=measure,
    summarise=summarise,
    verdicts=verdicts,
    tables=tables,
    plots=plots,
    datasets=lambda c: sorted({task.dataset for task in c.tasks}),
)
