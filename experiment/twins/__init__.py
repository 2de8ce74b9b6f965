"""The 13 micro twins: small tasks in the character of the real data sets, drawn by code."""
