"""`hf-longctx report`: result files to tables in the terminal and one self-contained HTML page."""
