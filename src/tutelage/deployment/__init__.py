"""Finished models out of the door: predictions in a few lines of Python, and ONNX files for other runtimes."""
