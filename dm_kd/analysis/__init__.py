"""From finished runs to tables, figures and one page; see dm_kd.report."""
