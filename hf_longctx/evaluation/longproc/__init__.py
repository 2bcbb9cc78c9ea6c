"""LongProc's scores by rule, and the searches of its countdown; nothing that a model wrote is evaluated."""
