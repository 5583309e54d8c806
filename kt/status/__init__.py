"""Progress of a study, from its ledger and its files, and from the scheduler's record where it runs on a cluster."""

from kt.status.made import from_other
from kt.status.survey import Survey, fingerprints, forget, in_bytes, survey, tables_with

__all__ = ["Survey", "fingerprints", "forget", "from_other", "in_bytes", "survey", "tables_with"]
