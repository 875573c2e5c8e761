"""The configuration groups; Hydra reads them as `pkg://kdlab.conf`."""
