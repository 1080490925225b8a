"""What ``import optdyn`` offers, by the room that it comes from."""

from . import figures as figures
from .dynamics import (
    ClosedLoop as ClosedLoop,
)
from .dynamics import (
    Lens as Lens,
)
from .dynamics import (
    closed_loop as closed_loop,
)
from .dynamics import (
    closed_loop_radius as closed_loop_radius,
)
from .dynamics import (
    dissect as dissect,
)
from .dynamics import (
    eigenmodes as eigenmodes,
)
from .dynamics import (
    find_fixed_points as find_fixed_points,
)
from .dynamics import (
    identify as identify,
)
from .dynamics import (
    linearize as linearize,
)
from .dynamics import (
    optimal_momentum as optimal_momentum,
)
from .dynamics import (
    param_groups as param_groups,
)
from .dynamics import (
    reduce as reduce,
)
from .dynamics import (
    settle as settle,
)
from .dynamics import (
    stability_map as stability_map,
)
from .errors import (
    UserError as UserError,
)
from .evaluation import (
    evaluate as evaluate,
)
from .evaluation import (
    paired_difference as paired_difference,
)
from .inner_loop import (
    Objective as Objective,
)
from .inner_loop import (
    ProblemSet as ProblemSet,
)
from .inner_loop import (
    meta_loss as meta_loss,
)
from .inner_loop import (
    unroll as unroll,
)
from .meta_training import (
    MetaTraining as MetaTraining,
)
from .meta_training import (
    meta_value_and_grad as meta_value_and_grad,
)
from .optimizers import (
    BASELINES as BASELINES,
)
from .optimizers import (
    CELLS as CELLS,
)
from .optimizers import (
    ENCODINGS as ENCODINGS,
)
from .optimizers import (
    Architecture as Architecture,
)
from .optimizers import (
    ComponentwiseRNN as ComponentwiseRNN,
)
from .optimizers import (
    Encoding as Encoding,
)
from .pretrained import (
    PRETRAINED as PRETRAINED,
)
from .pretrained import (
    load_pretrained as load_pretrained,
)
from .pretrained import (
    pretrained_card as pretrained_card,
)
from .runs import (
    load as load,
)
from .runs import (
    meta_train as meta_train,
)
from .runs import (
    save as save,
)
from .search import (
    best as best,
)
from .search import (
    random_search as random_search,
)
from .tasks import (
    TASKS as TASKS,
)
from .tasks import (
    Problem as Problem,
)
from .tasks import (
    Task as Task,
)
from .tasks import (
    make_task as make_task,
)
from .tasks import (
    sample_batch as sample_batch,
)
from .tasks import (
    task_curvatures as task_curvatures,
)

__version__: str
