"""The doors: one protocol each, nothing but translation. Imported as `raftkv.api`."""
