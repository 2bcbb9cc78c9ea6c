"""The ledger of upstream defects, `patches/`: its scripts are run on the installed releases, and recorded."""
