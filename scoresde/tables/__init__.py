"""Models of tables, as scikit-learn's estimators are used."""

from scoresde.tables.table_model import TableModel

__all__ = ["TableModel"]
