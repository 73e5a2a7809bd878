"""`fastast bench`: gates and their matched baselines, seed by seed."""
