"""The chat path under load, beside what else there is: `./tandem bench chat`."""
