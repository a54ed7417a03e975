//! A provider whose remote lives in another process, so that its ledger outlives a killed worker.
