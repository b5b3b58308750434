"""What every pipeline uses. Knows no pipeline and no gradio."""
