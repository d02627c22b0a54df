"""`r1fast doctor`: what is installed, whether a recipe can run here, what is wrong with a run."""
