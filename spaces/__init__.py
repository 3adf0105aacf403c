"""The Gradio Space: a page to speak to a model, continue it, compare it, score it and hear its units."""
