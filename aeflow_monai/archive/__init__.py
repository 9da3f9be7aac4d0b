"""Archives: more studies than one process can score, in shards that stop, go on and are merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aeflow_monai.imports import on_first_use

if TYPE_CHECKING:
    from aeflow_monai.archive.ledger import Claim, Ledger
    from aeflow_monai.archive.listed import studies_in
    from aeflow_monai.archive.merged import Merged, is_sharded, merge
    from aeflow_monai.archive.shard import Shard, ShardRun
    from aeflow_monai.archive.shard_run import run_shard
    from aeflow_monai.archive.study import Study

__all__ = ["Claim", "Ledger", "Merged", "Shard", "ShardRun", "Study", "is_sharded", "merge", "run_shard", "studies_in"]

if not TYPE_CHECKING:  # or mypy would take any name
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "ledger": ["Claim", "Ledger"],
            "listed": ["studies_in"],
            "merged": ["Merged", "is_sharded", "merge"],
            "shard": ["Shard", "ShardRun"],
            "shard_run": ["run_shard"],
            "study": ["Study"],
        },
    )
