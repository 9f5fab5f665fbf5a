"""What exists: the schema, the profiles and the one loader."""
