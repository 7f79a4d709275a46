"""The paper's study on your own data: grid, sweep, table, figures, advice.

```python
from keras_augreg import study

cells = study.read_cells("grid.json")
study.run(cells, "runs/sweep", study.train)
study.render(study.read("runs/sweep/results.csv"), "figures")
print(study.advise(5_000, device_budget_hours=2.0))
```

`recipes/sweep.py` is the command and docs/study.md the guide. Figures and
tables need the extra `study` (pandas, matplotlib).
"""

from keras_augreg.study.advice import Advice, Reason, advise
from keras_augreg.study.cell import train
from keras_augreg.study.figures import FIGURES, render
from keras_augreg.study.grid import (
    Finetuning,
    Grid,
    Pretraining,
    Source,
    Transfer,
    read_cells,
)
from keras_augreg.study.paper import PRINTED, published
from keras_augreg.study.rank import (
    Ranked,
    Ranking,
    rank_checkpoints,
    transfer_scores,
)
from keras_augreg.study.search import random_search
from keras_augreg.study.sweep import Summary, collect, run
from keras_augreg.study.table import COLUMNS, read
from keras_augreg.study.verdict import STATEMENTS, Verdict, verdicts

__all__ = [
    "COLUMNS",
    "FIGURES",
    "PRINTED",
    "STATEMENTS",
    "Advice",
    "Finetuning",
    "Grid",
    "Pretraining",
    "Ranked",
    "Ranking",
    "Reason",
    "Source",
    "Summary",
    "Transfer",
    "Verdict",
    "advise",
    "collect",
    "published",
    "random_search",
    "rank_checkpoints",
    "read",
    "read_cells",
    "render",
    "run",
    "train",
    "transfer_scores",
    "verdicts",
]
