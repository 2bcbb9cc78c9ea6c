"""Run-time cures of upstream defects, a file each, whose functions get the stock one first; see `applying.SHIMS`."""
