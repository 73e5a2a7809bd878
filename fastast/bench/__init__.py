"""`fastast bench`: arms x budgets x seeds, and what the same accuracy costs."""
