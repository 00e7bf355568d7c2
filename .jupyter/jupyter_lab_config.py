"Where `make lab` opens."

c.LabApp.default_url = "/lab/tree/nbs/00_start_here.ipynb"  # noqa: F821
