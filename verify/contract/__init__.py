"""The backend contract: what an engine needs of modeling code, configs and processors, read from their source."""
