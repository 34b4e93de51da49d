"""How the schema came to be, one step per file; run by `mpsearch_api.store.migrate`."""
