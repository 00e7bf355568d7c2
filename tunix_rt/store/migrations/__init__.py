"""The steps that bring a database from one version of the tables to the next.

Plain Python and no notebook: a step is written once, when the tables change, and never edited after
it has been released. `tunix_rt.store.engine` runs them.
"""

HEAD = "0008"  # The step that the tables of this version of the code need
KNOWN = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008")  # Every step, oldest first
VERSION_TABLE = "tunix_rt_version"  # Not `alembic_version`: Optuna keeps its own there
