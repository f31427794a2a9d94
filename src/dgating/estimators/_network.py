"""Networks with selected inputs, for one path or for the best of many strengths."""

from __future__ import annotations

from typing import Any

from dgating.estimators._network_base import (
    CrossValidatedNetwork,
    NetworkClassification,
    NetworkRegression,
    SinglePath,
)


class DGatedRegressor(SinglePath, NetworkRegression):
    r"""A network (MLP) for regression whose inputs are selected, for scikit-learn.

    .. math:: \min\; \frac{1}{2 \sum_i s_i} \sum_i s_i \|y_i - f(x_i)\|_2^2 + \lambda \sum_j \|W_j\|_F^{2/D}

    where :math:`W_j` are the weights of the first layer that read the columns of group ``j``. Columns and targets are
    standardised for the fit. A path (:func:`path`) rises from the dense network to the empty one; which point of it is
    taken is told by ``lam``, by ``n_groups``, or else by a rule on rows held back. Every point is trained on without
    the penalty for a while (``relax_steps``), so that its predictions are not shrunk. What is left is a smaller network
    that reads the selected columns alone. Rows are drawn from ``X`` where it lies: a ``numpy.memmap`` of float32 is not
    copied.

    As a transformer it drops the columns that were not selected.

    Args:
        hidden_layer_sizes: widths of the hidden layers.
        depth: ``D >= 2``.
        lam: strength λ, reached gently; all rows are trained on.
        n_groups: keep exactly so many groups (:func:`budget_path`).
        rule: ``"best"``: the best score on the rows held back. ``"1se"``: the sparsest point within one standard error
            (over these rows) of it. ``"within"``: within ``within``.
        within: in units of the score, R².
        validation_fraction: share of the rows held back, drawn at random; they are not trained on.
        groups: as in :class:`DGatedLinearRegressor`.
        activation: ``"relu"``, ``"tanh"``, ``"gelu"``, ``"logistic"`` or ``"identity"``.
        standardize: subtract means and divide by standard deviations of the columns.
        dense_steps: as in :func:`path`, like all below but the last two.
        steps: see there.
        relax_steps: see there.
        batch_size: see there.
        lr: see there.
        momentum: see there.
        weight_decay: see there.
        device: where to train, for example ``"cuda"``; predictions are made on the CPU.
        random_state: of weights, batches and rows held back.
        verbose: print a line for every strength.

    Attributes:
        feature_importances_: ``(p,)`` norms of the first layer's weights for each (standardised) column; zero: not
            selected.
        selected_groups_: names of the groups that are left; ``group_names_`` of all, ``groups_ (p,)`` their numbers.
        model_: the small ``torch.nn.Sequential``, on standardised selected columns.
        centre_: ``(p,)`` means of the columns; ``scale_`` their standard deviations.
        path_: the :class:`RegularizationPath`.
        lam_: the strength of the point.
        n_iter_: steps in all, relaxed fits not counted.
        n_features_in_: number of columns; ``feature_names_in_`` their names where ``X`` had any.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> X, y = load_diabetes(return_X_y=True, as_frame=True)
        >>> model = DGatedRegressor((32,), n_groups=3, random_state=0).fit(X, y)
        >>> sorted(model.selected_groups_)
        ['bmi', 'bp', 's5']

    Reference: arXiv 2509.23898, eq. (4) and section 9.3.
    """

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        *,
        depth: int = 3,
        lam: float | None = None,
        n_groups: int | None = None,
        rule: str = "1se",
        within: float = 0.01,
        validation_fraction: float = 0.2,
        groups: Any = None,
        activation: str = "relu",
        standardize: bool = True,
        dense_steps: int = 200,
        steps: int = 50,
        relax_steps: int = 50,
        batch_size: int | None = None,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        device: Any = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.depth = depth
        self.lam = lam
        self.n_groups = n_groups
        self.rule = rule
        self.within = within
        self.validation_fraction = validation_fraction
        self.groups = groups
        self.activation = activation
        self.standardize = standardize
        self.dense_steps = dense_steps
        self.steps = steps
        self.relax_steps = relax_steps
        self.batch_size = batch_size
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> DGatedRegressor:
        """Fit to ``X (n, p)`` and ``y (n,)`` or ``(n, k)``, rows weighted by
        ``sample_weight (n,)``.

        Raises:
            TypeError: sparse ``X``.
            ValueError: values that are not finite, shapes, groups or options that do not fit.
            FloatingPointError: the loss became infinite or nan before the first strength.
        """
        return self._fit(X, y, sample_weight)


class DGatedClassifier(SinglePath, NetworkClassification):
    r"""A network (MLP) for classification whose inputs are selected, for scikit-learn.

    As :class:`DGatedRegressor` with the cross entropy of one logit a class; a rule chooses by minus the log loss, which
    tells strengths apart better than the accuracy.

    Args:
        hidden_layer_sizes: widths of the hidden layers.
        depth: ``D >= 2``.
        lam: strength λ, reached gently; all rows are trained on.
        n_groups: keep exactly so many groups.
        rule: ``"best"``, ``"1se"`` or ``"within"``, on the rows held back.
        within: in units of the score, minus the log loss.
        validation_fraction: share of the rows held back, classes spread evenly.
        groups: as in :class:`DGatedLinearRegressor`.
        activation: as in :class:`DGatedRegressor`.
        standardize: see there.
        class_weight: ``"balanced"``, or a dict of factors for the rows of some classes.
        dense_steps: as in :func:`path`.
        steps: see there.
        relax_steps: see there.
        batch_size: see there.
        lr: see there.
        momentum: see there.
        weight_decay: see there.
        device: where to train.
        random_state: of weights, batches and rows held back.
        verbose: print a line for every strength.

    Attributes:
        classes_: the ``k`` classes.
        feature_importances_: as in :class:`DGatedRegressor`, like all others.

    Example:
        >>> from sklearn.datasets import load_breast_cancer
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> model = DGatedClassifier((32,), n_groups=5, random_state=0).fit(X, y)
        >>> int(model.get_support().sum()), model.model_[0].in_features, model.score(X, y) > 0.95
        (5, 5, True)

    Reference: arXiv 2509.23898, eq. (4) and section 9.3.
    """

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        *,
        depth: int = 3,
        lam: float | None = None,
        n_groups: int | None = None,
        rule: str = "1se",
        within: float = 0.01,
        validation_fraction: float = 0.2,
        groups: Any = None,
        activation: str = "relu",
        standardize: bool = True,
        class_weight: Any = None,
        dense_steps: int = 200,
        steps: int = 50,
        relax_steps: int = 50,
        batch_size: int | None = None,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        device: Any = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.depth = depth
        self.lam = lam
        self.n_groups = n_groups
        self.rule = rule
        self.within = within
        self.validation_fraction = validation_fraction
        self.groups = groups
        self.activation = activation
        self.standardize = standardize
        self.class_weight = class_weight
        self.dense_steps = dense_steps
        self.steps = steps
        self.relax_steps = relax_steps
        self.batch_size = batch_size
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> DGatedClassifier:
        """Fit to ``X (n, p)`` and classes ``y (n,)``, rows weighted by
        ``sample_weight (n,)``.

        Raises:
            TypeError: sparse ``X``.
            ValueError: values that are not finite, one class only, shapes, groups or options that do not fit.
            FloatingPointError: the loss became infinite or nan before the first strength.
        """
        return self._fit(X, y, sample_weight)


class DGatedRegressorCV(CrossValidatedNetwork, NetworkRegression):
    """:class:`DGatedRegressor` with the strength chosen by cross-validation.

    The path of all rows chooses the strengths (unless ``lams`` does), every fold runs its own path on the same ones,
    and the estimator is the path of all rows at the strength that the rule takes. Folds are spread by joblib, and the
    result does not depend on how. With ``folder=`` each finished fold is kept: a run that was killed goes on where it
    stopped.

    Args:
        hidden_layer_sizes: widths of the hidden layers.
        depth: ``D >= 2``.
        lams: as in :func:`path`.
        rule: ``"best"``: the best mean score. ``"1se"``: the largest λ whose mean score is at least the best one minus
            its standard error over the folds. ``"within"``: minus ``within``.
        within: in units of the score.
        cv: number of folds (rows are shuffled), a splitter or an iterable of index pairs, as in scikit-learn.
        scoring: a scorer of scikit-learn or its name; ``None`` is the R².
        n_jobs: folds at a time, as in joblib.
        folder: where finished folds are kept, and found again by the next fit with the same data and settings.
        groups: as in :class:`DGatedLinearRegressor`.
        activation: as in :class:`DGatedRegressor`, like all below.
        standardize: see there; every fold by its own rows.
        dense_steps: see there.
        steps: see there.
        relax_steps: see there.
        batch_size: see there.
        lr: see there.
        momentum: see there.
        weight_decay: see there.
        device: see there.
        random_state: of weights, batches and folds. For a run that is resumed it has to be a number.
        verbose: print a line for every strength of all rows, and a progress bar.

    Attributes:
        lam_: the chosen strength, ``lams_[best_index_]``.
        lams_: ``(L,)`` strengths, rising.
        scores_: ``(K, L)`` score of each fold; ``standard_errors_ (L,)`` of their mean.
        n_groups_: ``(K, L)`` how many groups were left.
        model_: as in :class:`DGatedRegressor`, like all others.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> X, y = load_diabetes(return_X_y=True)
        >>> model = DGatedRegressorCV((16,), cv=3, lams=12, steps=20, relax_steps=0, random_state=0).fit(X, y)
        >>> model.scores_.shape, bool(model.get_support().any())
        ((3, 12), True)

    Reference: the one-standard-error rule, Hastie, Tibshirani and Friedman, section 7.10.
    """

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        *,
        depth: int = 3,
        lams: Any = None,
        rule: str = "1se",
        within: float = 0.01,
        cv: Any = 5,
        scoring: Any = None,
        n_jobs: int | None = None,
        folder: Any = None,
        groups: Any = None,
        activation: str = "relu",
        standardize: bool = True,
        dense_steps: int = 200,
        steps: int = 50,
        relax_steps: int = 50,
        batch_size: int | None = None,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        device: Any = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.depth = depth
        self.lams = lams
        self.rule = rule
        self.within = within
        self.cv = cv
        self.scoring = scoring
        self.n_jobs = n_jobs
        self.folder = folder
        self.groups = groups
        self.activation = activation
        self.standardize = standardize
        self.dense_steps = dense_steps
        self.steps = steps
        self.relax_steps = relax_steps
        self.batch_size = batch_size
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> DGatedRegressorCV:
        """Choose the strength and fit to ``X (n, p)`` and ``y (n,)`` or ``(n, k)``, rows weighted by
        ``sample_weight (n,)``.

        Raises:
            TypeError: sparse ``X``.
            ValueError: values that are not finite, shapes, groups or options that do not fit;
                more folds than rows; a folder of other data or settings.
            FloatingPointError: the loss became infinite or nan before the first strength.
        """
        return self._fit_many(X, y, sample_weight)


class DGatedClassifierCV(CrossValidatedNetwork, NetworkClassification):
    """:class:`DGatedClassifier` with the strength chosen by cross-validation.

    The path of all rows chooses the strengths (unless ``lams`` does), every fold runs its own path on the same ones,
    and the estimator is the path of all rows at the strength that the rule takes. Folds are spread by joblib, and the
    result does not depend on how. With ``folder=`` each finished fold is kept: a run that was killed goes on where it
    stopped.

    Args:
        hidden_layer_sizes: widths of the hidden layers.
        depth: ``D >= 2``.
        lams: as in :func:`path`.
        rule: ``"best"``: the best mean score. ``"1se"``: the largest λ whose mean score is at least the best one minus
            its standard error over the folds. ``"within"``: minus ``within``.
        within: in units of the score.
        cv: number of folds (rows are shuffled), a splitter or an iterable of index pairs, as in scikit-learn.
        scoring: a scorer of scikit-learn or its name; ``None`` is minus the log loss, which tells strengths apart
            better than the accuracy.
        n_jobs: folds at a time, as in joblib.
        folder: where finished folds are kept, and found again by the next fit with the same data and settings.
        groups: as in :class:`DGatedLinearRegressor`.
        activation: as in :class:`DGatedClassifier`, like all below.
        standardize: see there; every fold by its own rows.
        class_weight: see there; they count when fitting, not when scoring.
        dense_steps: see there.
        steps: see there.
        relax_steps: see there.
        batch_size: see there.
        lr: see there.
        momentum: see there.
        weight_decay: see there.
        device: see there.
        random_state: of weights, batches and folds. For a run that is resumed it has to be a number.
        verbose: print a line for every strength of all rows, and a progress bar.

    Attributes:
        lam_: the chosen strength, ``lams_[best_index_]``.
        lams_: ``(L,)`` strengths, rising.
        scores_: ``(K, L)`` score of each fold; ``standard_errors_ (L,)`` of their mean.
        n_groups_: ``(K, L)`` how many groups were left.
        model_: as in :class:`DGatedClassifier`, like all others.

    Example:
        >>> from sklearn.datasets import load_wine
        >>> X, y = load_wine(return_X_y=True)
        >>> model = DGatedClassifierCV((16,), cv=3, lams=12, steps=20, relax_steps=0, random_state=0).fit(X, y)
        >>> model.scores_.shape, bool(model.get_support().any())
        ((3, 12), True)

    Reference: the one-standard-error rule, Hastie, Tibshirani and Friedman, section 7.10.
    """

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        *,
        depth: int = 3,
        lams: Any = None,
        rule: str = "1se",
        within: float = 0.01,
        cv: Any = 5,
        scoring: Any = None,
        n_jobs: int | None = None,
        folder: Any = None,
        groups: Any = None,
        activation: str = "relu",
        standardize: bool = True,
        class_weight: Any = None,
        dense_steps: int = 200,
        steps: int = 50,
        relax_steps: int = 50,
        batch_size: int | None = None,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        device: Any = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.depth = depth
        self.lams = lams
        self.rule = rule
        self.within = within
        self.cv = cv
        self.scoring = scoring
        self.n_jobs = n_jobs
        self.folder = folder
        self.groups = groups
        self.activation = activation
        self.standardize = standardize
        self.class_weight = class_weight
        self.dense_steps = dense_steps
        self.steps = steps
        self.relax_steps = relax_steps
        self.batch_size = batch_size
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> DGatedClassifierCV:
        """Choose the strength and fit to ``X (n, p)`` and classes ``y (n,)``, rows weighted by
        ``sample_weight (n,)``.

        Raises:
            TypeError: sparse ``X``.
            ValueError: values that are not finite, one class only, shapes, groups or options that do not fit;
                more folds than rows; a folder of other data or settings.
            FloatingPointError: the loss became infinite or nan before the first strength.
        """
        return self._fit_many(X, y, sample_weight)
