"""YAML to a Composer run: configuration, model, data, evaluators, run folder."""
