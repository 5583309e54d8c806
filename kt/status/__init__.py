"""How far a study is, from its ledger and its files, and from the scheduler's record where it runs on a cluster."""

from kt.status.trainings import Survey, fingerprints, forget, survey, tables_with

__all__ = ["Survey", "fingerprints", "forget", "survey", "tables_with"]
