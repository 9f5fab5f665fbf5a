"""The OpenAI-style API: keys, routing, jobs and errors, in front of the adapters."""
