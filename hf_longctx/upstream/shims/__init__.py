"""Run-time cures of upstream defects, a file each; their functions get the stock one first. `applying.SHIMS` is the table."""
