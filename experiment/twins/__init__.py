"""The 13 micro twins: small tasks drawn by code, and the small CLIP that reads them."""
