"""The stages of the pipeline, one file each; `r1fast.pipeline` runs them in order."""
