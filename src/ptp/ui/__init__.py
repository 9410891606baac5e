"""The page to try pruning on: `ptp ui`. `app` and `server` import Gradio (the extra `ui`); the other files run without it."""
