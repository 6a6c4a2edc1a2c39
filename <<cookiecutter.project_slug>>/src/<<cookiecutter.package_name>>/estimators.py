"""The estimators that can be trained: parameters, how each is built, and where tuning looks.

An estimator of your own is a function that builds a scikit-learn pipeline, a row in `ESTIMATORS` (the simplest first),
and a field of the same name in `TrainParams`. Import scikit-learn inside the function: commands that train nothing read
the parameters too. Select columns by position, as skl2onnx does:

    class SmallForestParams(StrictModel):
        n_estimators: int = Field(default=50, gt=0)

    def small_forest(task: Task, params: SmallForestParams, featurizer: Featurizer, seed: int) -> Pipeline:
        from flywheel_ml.model.pipelines import preprocessing
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.pipeline import make_pipeline

        forest = RandomForestClassifier(**params.model_dump())
        return make_pipeline(preprocessing.encode_for_trees(task, featurizer, seed), forest)
"""

from collections.abc import Mapping
from typing import ClassVar

from flywheel_ml.core import params
from flywheel_ml.core.catalog import STANDARD_ESTIMATORS, Estimator

ESTIMATORS: dict[str, Estimator] = {**STANDARD_ESTIMATORS}


class TrainParams(params.TrainParams):
    """`train` in params.yaml: which estimator, and the parameters of each."""

    catalog: ClassVar[Mapping[str, Estimator]] = ESTIMATORS
