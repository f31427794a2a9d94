"""Linear estimators with group selection, for one strength or for the best of many."""

from __future__ import annotations

from typing import Any

from dgating.estimators._linear_base import CrossValidated, LinearClassification, LinearRegression


class DGatedLinearRegressor(LinearRegression):
    r"""Linear regression that keeps or drops whole groups of columns, for scikit-learn.

    .. math:: \min_{W, b}\; \frac{1}{2 \sum_i s_i} \sum_i s_i \|y_i - W^\top x_i - b\|_2^2
              + \lambda \sum_j \|W_j\|_F^{2/D}

    on **standardised** columns, so that the penalty does not depend on their units; ``coef_`` is in the user's units.
    ``D = 2`` is the group lasso (convex, :func:`group_lasso_path`); ``D >= 3`` shrinks what it keeps less and selects
    more sharply (:func:`group_bridge_path`). A table of many more rows than columns is read in blocks and never copied:
    it may be a ``numpy.memmap`` larger than the memory.

    As a transformer it drops the columns that were not selected.

    Args:
        lam: strength λ; ``None`` takes a twentieth of ``lam_max_linear``. :class:`DGatedLinearRegressorCV` chooses it.
        depth: ``D >= 2``.
        groups: ``None`` (every column by itself); an int: blocks of so many columns; a tuple of sizes; ``(p,)`` labels,
            ints or strings, ``-1`` for a column that is not penalised; a list of lists of column indices or names;
            ``"auto"``: one-hot columns of a DataFrame, guessed from their names (indicators that share the name up to
            the last underscore and exclude each other); better :func:`one_hot_groups` of the encoder. A list of ints is
            read as labels if there are ``p`` of them, else as sizes.
        fit_intercept: whether there is a ``b``.
        standardize: divide the columns by their standard deviation (root mean square without intercept) for the fit.
        tol: as in the path functions.
        max_iter: steps at one strength.
        verbose: print a line after the fit.

    Attributes:
        coef_: ``(p,)``, or ``(k, p)`` for a matrix of targets; exact zeros for what is not selected.
        intercept_: a number, or ``(k,)``.
        feature_importances_: ``(p,)`` norms of the standardised coefficients over the targets; zero: not selected.
        groups_: ``(p,)`` number of each column's group; ``group_names_`` are their names.
        selected_groups_: names of the groups that are left.
        lam_: the strength.
        n_iter_: steps in all.
        solver_: which one ran.
        path_: the :class:`GroupLassoPath` or :class:`GroupBridgePath` that it is from; ``coef`` in the user's units,
            ``objective`` of the standardised columns.
        n_features_in_: number of columns; ``feature_names_in_`` their names where ``X`` had any.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> X, y = load_diabetes(return_X_y=True, as_frame=True)
        >>> model = DGatedLinearRegressor(lam=10.0).fit(X, y)
        >>> model.selected_groups_, round(model.score(X, y), 2)
        (['sex', 'bmi', 'bp', 's3', 's5'], 0.5)

    Reference: arXiv 2509.23898, eq. (1).
    """

    def __init__(
        self,
        lam: float | None = None,
        *,
        depth: int = 3,
        groups: Any = None,
        fit_intercept: bool = True,
        standardize: bool = True,
        tol: float = 1e-7,
        max_iter: int = 20_000,
        verbose: bool = False,
    ) -> None:
        self.lam = lam
        self.depth = depth
        self.groups = groups
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.tol = tol
        self.max_iter = max_iter
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> DGatedLinearRegressor:
        """Fit to ``X (n, p)`` and ``y (n,)`` or ``(n, k)``, rows weighted by ``sample_weight (n,)``.

        Raises:
            TypeError: sparse ``X``.
            ValueError: values that are not finite, shapes or groups that do not fit.
        """
        return self._fit_one(self.lam, X, y, sample_weight)


class DGatedLinearClassifier(LinearClassification):
    r"""Logistic regression that keeps or drops whole groups of columns, for scikit-learn.

    .. math:: \min_{W, b}\; \frac{1}{\sum_i s_i} \sum_i s_i\, \ell(y_i, W^\top x_i + b) + \lambda \sum_j \|W_j\|_F^{2/D}

    with the log loss :math:`\ell` of one logit for two classes and of ``k`` logits for more: a group spans the
    coefficients of its columns for all classes. Standardising, D and groups as in :class:`DGatedLinearRegressor`. The
    fit holds a few float64 copies of ``X``.

    Args:
        lam: strength λ; ``None`` takes a twentieth of ``lam_max_linear``.
        depth: ``D >= 2``.
        groups: as in :class:`DGatedLinearRegressor`.
        fit_intercept: whether there is a ``b``.
        standardize: divide the columns by their standard deviation for the fit.
        class_weight: ``"balanced"``, or a dict of factors for the rows of some classes.
        tol: as in the path functions.
        max_iter: steps at one strength.
        verbose: print a line after the fit.

    Attributes:
        classes_: the ``k`` classes.
        coef_: ``(1, p)`` for two classes, else ``(k, p)``.
        intercept_: ``(1,)`` or ``(k,)``.
        feature_importances_: as in :class:`DGatedLinearRegressor`, like all others.

    Example:
        >>> from sklearn.datasets import load_breast_cancer
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> model = DGatedLinearClassifier().fit(X, y)
        >>> int(model.get_support().sum()), model.transform(X).shape, round(model.score(X, y), 2)
        (3, (569, 3), 0.97)

    Reference: arXiv 2509.23898, eq. (1).
    """

    def __init__(
        self,
        lam: float | None = None,
        *,
        depth: int = 3,
        groups: Any = None,
        fit_intercept: bool = True,
        standardize: bool = True,
        class_weight: Any = None,
        tol: float = 1e-7,
        max_iter: int = 20_000,
        verbose: bool = False,
    ) -> None:
        self.lam = lam
        self.depth = depth
        self.groups = groups
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> DGatedLinearClassifier:
        """Fit to ``X (n, p)`` and classes ``y (n,)``, rows weighted by ``sample_weight (n,)``.

        Raises:
            TypeError: sparse ``X``.
            ValueError: values that are not finite, one class only, shapes, groups or class weights that do not fit.
        """
        return self._fit_one(self.lam, X, y, sample_weight)


class DGatedLinearRegressorCV(CrossValidated, LinearRegression):
    """:class:`DGatedLinearRegressor` with the strength chosen by cross-validation.

    Every fold runs its whole path on the same strengths; the path of all rows is then cut at the chosen one. Folds are
    spread by joblib, and the result does not depend on how. For ``D >= 3`` a fit at ``lam_`` alone, which
    starts elsewhere, may end in another local minimum. With ``folder=`` each finished fold is kept: a run that was
    killed goes on where it stopped.

    Args:
        lams: how many strengths up to ``lam_max_linear``, or the strengths.
        lam_ratio: the smallest as a share of the largest, for a number of strengths.
        rule: ``"best"``: the best mean score. ``"1se"``: the largest λ whose mean score is at least the best one minus
            its standard error over the folds. ``"within"``: minus ``within``.
        within: in units of the score.
        cv: number of folds, a splitter or an iterable of index pairs, as in scikit-learn.
        scoring: a scorer of scikit-learn or its name; ``None`` is ``"neg_mean_squared_error"``. Sample weights are
            handed on if there are any.
        n_jobs: folds at a time, as in joblib.
        folder: where finished folds are kept, and found again by the next fit with the same data and settings.
        random_state: shuffles the rows of an integer ``cv``; ``None`` leaves them in order, as scikit-learn does.
        depth: as in :class:`DGatedLinearRegressor`, like all below.
        groups: see there.
        fit_intercept: see there.
        standardize: see there.
        tol: see there.
        max_iter: see there.
        verbose: a progress bar, and a line after the fit.

    Attributes:
        lam_: the chosen strength, ``lams_[best_index_]``.
        lams_: ``(L,)`` strengths, rising.
        scores_: ``(K, L)`` score of each fold; ``standard_errors_ (L,)`` of their mean.
        n_groups_: ``(K, L)`` how many groups were left.
        path_: all rows at all strengths.
        coef_: as in :class:`DGatedLinearRegressor`, like all others.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> X, y = load_diabetes(return_X_y=True, as_frame=True)
        >>> model = DGatedLinearRegressorCV(lams=20, random_state=0).fit(X, y)
        >>> model.selected_groups_, model.scores_.shape
        (['sex', 'bmi', 'bp', 's1', 's4', 's5'], (5, 20))

    Reference: the one-standard-error rule, Hastie, Tibshirani and Friedman, section 7.10.
    """

    _default_scoring = "neg_mean_squared_error"
    _single = DGatedLinearRegressor

    def __init__(
        self,
        lams: Any = 50,
        *,
        lam_ratio: float = 1e-3,
        rule: str = "1se",
        within: float = 0.01,
        cv: Any = 5,
        scoring: Any = None,
        n_jobs: int | None = None,
        folder: Any = None,
        random_state: Any = None,
        depth: int = 3,
        groups: Any = None,
        fit_intercept: bool = True,
        standardize: bool = True,
        tol: float = 1e-7,
        max_iter: int = 20_000,
        verbose: bool = False,
    ) -> None:
        self.lams = lams
        self.lam_ratio = lam_ratio
        self.rule = rule
        self.within = within
        self.cv = cv
        self.scoring = scoring
        self.n_jobs = n_jobs
        self.folder = folder
        self.random_state = random_state
        self.depth = depth
        self.groups = groups
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.tol = tol
        self.max_iter = max_iter
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> DGatedLinearRegressorCV:
        """Choose the strength and fit to ``X (n, p)`` and ``y (n,)`` or ``(n, k)``.

        Raises:
            TypeError: sparse ``X``.
            ValueError: as :meth:`DGatedLinearRegressor.fit`; more folds than rows; a folder of other data or settings.
        """
        return self._fit_many(X, y, sample_weight)


class DGatedLinearClassifierCV(CrossValidated, LinearClassification):
    """:class:`DGatedLinearClassifier` with the strength chosen by cross-validation.

    As :class:`DGatedLinearRegressorCV`; folds are stratified. Class weights count when fitting, not when scoring, and
    ``"balanced"`` ones are those of all rows.

    Args:
        lams: how many strengths up to ``lam_max_linear``, or the strengths.
        lam_ratio: the smallest as a share of the largest, for a number of strengths.
        rule: ``"best"``, ``"1se"`` or ``"within"``, as in :class:`DGatedLinearRegressorCV`.
        within: in units of the score.
        cv: number of folds, a splitter or an iterable of index pairs, as in scikit-learn.
        scoring: a scorer of scikit-learn or its name; ``None`` is ``"neg_log_loss"``, which tells strengths apart
            better than the accuracy.
        n_jobs: folds at a time, as in joblib.
        folder: where finished folds are kept, and found again by the next fit with the same data and settings.
        random_state: shuffles the rows of an integer ``cv``; ``None`` leaves them in order, as scikit-learn does.
        depth: as in :class:`DGatedLinearClassifier`, like all below.
        groups: see there.
        fit_intercept: see there.
        standardize: see there.
        class_weight: see there.
        tol: see there.
        max_iter: see there.
        verbose: a progress bar, and a line after the fit.

    Attributes:
        lam_: the chosen strength, ``lams_[best_index_]``; ``lams_``, ``scores_``, ``standard_errors_``, ``n_groups_``
            and ``path_`` as in :class:`DGatedLinearRegressorCV`.
        coef_: as in :class:`DGatedLinearClassifier`, like all others.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> model = DGatedLinearClassifierCV(lams=10).fit(X, y)
        >>> model.get_support().tolist(), model.predict_proba(X[:2]).shape
        ([False, True, True, True], (2, 3))

    Reference: the one-standard-error rule, Hastie, Tibshirani and Friedman, section 7.10.
    """

    _default_scoring = "neg_log_loss"
    _single = DGatedLinearClassifier

    def __init__(
        self,
        lams: Any = 50,
        *,
        lam_ratio: float = 1e-3,
        rule: str = "1se",
        within: float = 0.01,
        cv: Any = 5,
        scoring: Any = None,
        n_jobs: int | None = None,
        folder: Any = None,
        random_state: Any = None,
        depth: int = 3,
        groups: Any = None,
        fit_intercept: bool = True,
        standardize: bool = True,
        class_weight: Any = None,
        tol: float = 1e-7,
        max_iter: int = 20_000,
        verbose: bool = False,
    ) -> None:
        self.lams = lams
        self.lam_ratio = lam_ratio
        self.rule = rule
        self.within = within
        self.cv = cv
        self.scoring = scoring
        self.n_jobs = n_jobs
        self.folder = folder
        self.random_state = random_state
        self.depth = depth
        self.groups = groups
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> DGatedLinearClassifierCV:
        """Choose the strength and fit to ``X (n, p)`` and classes ``y (n,)``.

        Raises:
            TypeError: sparse ``X``.
            ValueError: as :meth:`DGatedLinearClassifier.fit`; more folds than rows; a fold without a class; a folder of
                other data or settings.
        """
        return self._fit_many(X, y, sample_weight)
