"""Pictures. Needs the extra ``plot``."""
